"""What a check says: a verdict, what was measured, and the mend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Verdict = Literal["fine", "not measured", "warning", "stop"]
VERDICTS: tuple[Verdict, ...] = ("fine", "not measured", "warning", "stop")
"""From the best to the worst."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result. `figures` are the numbers behind `measured`, for programs.

    `mend` says what to change where the verdict is a warning or a stop, `commands` what to type for it. `not measured`:
    the check has nothing to judge here, and `measured` says why.
    """

    check: str
    verdict: Verdict
    measured: str
    mend: str = ""
    commands: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


def not_measured(check: str, why: str) -> Finding:
    """The check does not apply, or cannot be made."""
    return Finding(check, "not measured", why)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The one that decides."""
    return max(verdicts, key=VERDICTS.index)


def together(check: str, parts: Mapping[str, Finding]) -> Finding:
    """One finding of several, a line for each: the worst verdict, and the first commands."""
    if len(parts) == 1:
        (part,) = parts.values()
        return part
    mends = dict.fromkeys(part.mend for part in parts.values() if part.mend)
    return Finding(
        check,
        worst([part.verdict for part in parts.values()]),
        "\n".join(f"{name}: {part.measured}" for name, part in parts.items()),
        "; ".join(mends),
        next((part.commands for part in parts.values() if part.commands), ""),
        {name: dict(part.figures) for name, part in parts.items()},
    )
