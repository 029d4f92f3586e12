"""The live view of a terminal: bars of what is under way, with the run's main curves above them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean

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
MOST_POINTS = 1024
"""Numbers that are kept of a curve: what is drawn ten times a second must not grow with the run."""


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """Values as at most `width` bars between the lowest and the highest; neighbours that share a bar are averaged."""
    bars = min(width, len(values))
    edges = [len(values) * i // bars for i in range(bars + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if low == high:
        return BARS[0] * bars
    return "".join(BARS[round((mean - low) / (high - low) * (len(BARS) - 1))] for mean in means)


class Curve:
    """A figure over any number of steps: its first and its last value, and the means of equally many in between."""

    def __init__(self) -> None:
        self.first = self.last = math.nan
        self.means: list[float] = []
        self._each = 1
        self._gathered: list[float] = []

    def add(self, value: float) -> None:
        """The next step's value."""
        if not self.means:
            self.first = value
        self.last = value
        self._gathered.append(value)
        if len(self._gathered) == self._each:
            self.means.append(fmean(self._gathered))
            self._gathered.clear()
        if len(self.means) == MOST_POINTS:
            self.means = [fmean(pair) for pair in zip(self.means[::2], self.means[1::2], strict=True)]
            self._each *= 2


class LiveProgress(Progress):
    """Rich's progress, with curves and rates of the steps so far. Draws nothing where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.curves: dict[str, Curve] = {}
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
                self.curves.setdefault(name, Curve()).add(value)
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
            curve = self.curves[name]
            label = NAMES.get(name, name.removesuffix("/mean").replace("_", " "))
            line = sparkline(curve.means, width)
            table.add_row(label, line, f"{curve.last:.3g}", f"from {curve.first:.3g}")
        return table
