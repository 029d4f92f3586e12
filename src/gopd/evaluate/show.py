"""What the user sees of an evaluation: tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from gopd.estimates import Estimate
from gopd.evaluate.compare import Comparison
from gopd.evaluate.figures import Figures


def table(rows: Mapping[tuple[str, str], Figures]) -> Table:
    """Figures by (model, task), with their 95% intervals."""
    shown = Table(title="shares in % [95% interval over problems]", title_justify="left")
    ks = sorted({k for found in rows.values() for k in found.pass_at})
    for name in ("model", "task"):
        shown.add_column(name)
    for name in ("problems × n", "avg@n", *(f"pass@{k}" for k in ks), "maj@n", "tokens", "cut", "no answer"):
        shown.add_column(name, justify="right")
    for (model, task), found in rows.items():
        shown.add_row(
            *(model, task, f"{found.problems} × {found.samples}", _percent(found.average)),
            *(_percent(found.pass_at.get(k)) for k in ks),
            _percent(found.majority),
            *(_number(found.tokens), _percent(found.truncated), _percent(found.unanswered)),
        )
    return shown


def comparison_table(comparisons: Sequence[Comparison]) -> Table:
    """B against A, task by task."""
    shown = Table(title="avg@n in % [95% interval over problems, paired]", title_justify="left")
    shown.add_column("task")
    for name in ("problems", "A", "B", "B − A", "B better / worse on", "verdict"):
        shown.add_column(name, justify="right")
    for one in comparisons:
        shown.add_row(
            *(one.task, str(one.problems), _percent(one.a), _percent(one.b), _percent(one.difference, "+")),
            *(f"{one.better} / {one.worse}", one.verdict),
        )
    return shown


def _number(found: Estimate) -> str:
    return f"{found.mean:,.0f} [{found.low:,.0f}, {found.high:,.0f}]"


def _percent(found: Estimate | None, sign: str = "") -> str:
    if found is None:
        return ""
    return f"{100 * found.mean:{sign}.1f} [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"
