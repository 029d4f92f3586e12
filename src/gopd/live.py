"""The live view of a terminal: bars of what is under way, with the run's main curves above them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

CURVES = (
    "kl_to_target",
    "kl_to_reference",
    "loss",
    "entropy",
    "response_tokens/mean",
    "truncated",
    "staleness",
)
"""Figures that are drawn where a run has them, before its rewards."""
NAMES = {"kl_to_target": "KL to target", "kl_to_reference": "KL to reference"}
WIDTH = 40
"""Characters of a curve."""
BARS = "▁▂▃▄▅▆▇█"
SPEED_SECONDS = 3600.0
"""The past that the time left is reckoned from: steps may take minutes."""
RATES = "tokens_per_second/"


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Values as at most `width` bars between the lowest and the highest; neighbours that share a bar are averaged."""
    bars = min(width, len(values))
    edges = [len(values) * i // bars for i in range(bars + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if low == high:
        return BARS[0] * bars
    return "".join(BARS[round((mean - low) / (high - low) * (len(BARS) - 1))] for mean in means)


class LiveProgress(Progress):
    """Rich's progress, with curves and rates of the steps so far. Draws nothing where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.curves: dict[str, list[float]] = {}
        self.rates: dict[str, float] = {}
        super().__init__(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=SPEED_SECONDS,
        )

    def remember(self, figures: Mapping[str, float | None]) -> None:
        """Adds one step's figures."""
        for name, value in figures.items():
            drawn = name in CURVES or name.startswith("reward/")
            if drawn and value is not None and math.isfinite(value):
                self.curves.setdefault(name, []).append(value)
        self.rates = {
            name.removeprefix(RATES): value
            for name, value in figures.items()
            if name.startswith(RATES) and value is not None
        }

    def get_renderables(self) -> Iterable[RenderableType]:
        """Curves, rates and bars, from top to bottom."""
        if self.curves:
            yield self._drawn()
        if self.rates:
            parts = "  ".join(f"{phase} {rate:,.0f}" for phase, rate in self.rates.items())
            yield f"[dim]tokens/s of the last step[/]  {parts}"
        yield from super().get_renderables()

    def _drawn(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_column(max_width=24, no_wrap=True, overflow="ellipsis")
        table.add_column(style="cyan", no_wrap=True)
        table.add_column(justify="right")
        table.add_column(style="dim")
        width = max(8, min(WIDTH, self.console.width - 50))
        rewards = sorted(name for name in self.curves if name.startswith("reward/"))
        for name in [*(name for name in CURVES if name in self.curves), *rewards]:
            values = self.curves[name]
            label = NAMES.get(name, name.removesuffix("/mean").replace("_", " "))
            table.add_row(label, sparkline(values, width), f"{values[-1]:.3g}", f"from {values[0]:.3g}")
        return table
