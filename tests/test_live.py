"""The live view: curves by hand, and what a terminal shows."""

from __future__ import annotations

import io
import math

import pytest
from rich.console import Console

from gopd.console import Display
from gopd.live import BARS, MOST_POINTS, Curve, sparkline


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 40, BARS),
        ([7, 0, 3.5], 40, "█▁▅"),
        ([-2, -1], 40, "▁█"),
        ([3, 3, 3], 40, "▁▁▁"),
        ([5], 40, "▁"),
        ([0, 2, 6, 8, 3, 3], 3, "▁█▃"),  # 1, 7, 3
        ([0, 0, 10, 10, 10], 2, "▁█"),  # 0; 10
    ],
)
def test_a_curve_is_the_means_between_lowest_and_highest(
    values: list[float], width: int, expected: str
) -> None:
    assert sparkline(values, width) == expected


def shown(console_width: int, steps: int) -> list[str]:
    """What the terminal has below the steps' lines after so many steps, of which the first two are recalled."""
    display = Display(Console(file=io.StringIO(), force_terminal=True, width=console_width))
    entries = [
        {
            "kl_to_target": 1.0 / (1 + i),
            "reward/sums": i / 10,
            "grad_norm": 1.0,
            "tokens_per_second/sample": 1e4,
        }
        for i in range(steps)
    ]
    display.recall([{"step": i, **entry} for i, entry in enumerate(entries[:2])])
    with display.run(steps, 2):
        for i, entry in enumerate(entries[2:], 3):
            display.step(i, steps, entry, 1.0)
        screen = Console(file=io.StringIO(), width=console_width)
        screen.print(display._progress.get_renderable())
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_curves_stand_above_the_bars_in_any_width(width: int) -> None:
    kl, reward, rates, steps = shown(width, 8)
    assert kl.split() == ["KL", "to", "target", "█▄▃▂▂▁▁▁", "0.125", "from", "1"]
    assert reward.split() == ["reward/sums", BARS, "0.7", "from", "0"]
    assert rates == "tokens/s of the last step  sample 10,000"
    assert steps.split()[0] == "steps" and "8/8" in steps


def test_figures_that_a_run_lacks_or_that_are_not_finite_leave_no_mark() -> None:
    display = Display(Console(file=io.StringIO(), force_terminal=True, width=80))
    display.recall([{"step": 1, "kl_to_target": None}, {"step": 2, "entropy": 0.5, "loss": math.inf}])
    assert {name: curve.means for name, curve in display._progress.curves.items()} == {"entropy": [0.5]}


@pytest.mark.parametrize("steps", [1, 1023, 1024, 5000, 100_000])
def test_a_long_curve_keeps_its_shape_in_little_room(steps: int) -> None:
    curve = Curve()
    for step in range(steps):
        curve.add(float(step))
    assert (curve.first, curve.last) == (0, steps - 1)
    assert len(curve.means) <= MOST_POINTS
    each = curve.means[-1] - curve.means[-2] if steps > 1 else 1.0  # values that a mean stands for
    assert curve.means == pytest.approx([each * i + (each - 1) / 2 for i in range(len(curve.means))])
    assert each * (len(curve.means) + 1) > steps  # of the newest no more are missing than a mean takes
