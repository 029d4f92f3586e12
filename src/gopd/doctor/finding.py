"""What a check says: a verdict, what was measured, and the mend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gopd.recipe import AnyRecipe, OpdRecipe

Verdict = Literal["fine", "unmeasured", "warning", "stop"]
VERDICTS: tuple[Verdict, ...] = ("fine", "unmeasured", "warning", "stop")
"""From the best to the worst."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result. `figures` are the numbers behind `measured`, for programs.

    `mend` says what to change where the verdict is a warning or a stop, `commands` what to type for it. `unmeasured`:
    the check has nothing to judge here, and `measured` says why.
    """

    check: str
    verdict: Verdict
    measured: str
    mend: str = ""
    commands: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


def unmeasured(check: str, why: str) -> Finding:
    """The check does not apply, or cannot be made."""
    return Finding(check, "unmeasured", why)


def worst(verdicts: list[Verdict]) -> Verdict:
    """The one that decides."""
    return max(verdicts, key=VERDICTS.index)


def joined(check: str, parts: Mapping[str, Finding]) -> Finding:
    """One finding of several, a line for each: the worst verdict, and the first commands."""
    mends = dict.fromkeys(part.mend for part in parts.values() if part.mend)
    return Finding(
        check,
        worst([part.verdict for part in parts.values()]),
        "\n".join(part.measured for part in parts.values()),
        "; ".join(mends),
        next((part.commands for part in parts.values() if part.commands), ""),
        {name: dict(part.figures) for name, part in parts.items()},
    )


def of_teachers(check: str, recipe: AnyRecipe, judge: Callable[[OpdRecipe, str], Finding]) -> Finding:
    """One finding of all teachers, with their names before their lines where they say different things."""
    if not isinstance(recipe, OpdRecipe):
        return unmeasured(check, f"method {recipe.method} has no teacher")
    parts = {name: judge(recipe, name) for name in recipe.teachers}
    if len({part.measured for part in parts.values()}) == 1:
        return next(iter(parts.values()))
    named = {
        name: replace(part, measured="\n".join(f"{name}: {line}" for line in part.measured.splitlines()))
        for name, part in parts.items()
    }
    return joined(check, named)
