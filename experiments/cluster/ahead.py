"""Steps per second with a slow sampler, simulated: both phases in turn, and sampling ahead. Prints a table.

Sampling and training only sleep here, each for times drawn once per step; the thread that collects is the real one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any, cast

import numpy as np

from gopd.collect import AheadCollector, Collected, Collector
from gopd.console import Display
from gopd.metrics import Clock
from gopd.recipe_file import parse_recipe

STEPS = 40


class Task:
    """As much of a task as a collector looks at before it collects."""

    total_steps = STEPS


def sleeping(base: type[Collector], seconds: Sequence[float]) -> type[Collector]:
    """A collector whose batches take so long."""

    class Sleeping(base):  # type: ignore[valid-type, misc]
        def collect(self, step: int) -> Collected:
            time.sleep(seconds[step - 1])
            return Collected([], [], step - 1, Clock())

    return Sleeping


def steps_per_second(sampling: Sequence[float], training: Sequence[float], staleness: int) -> float:
    recipe = parse_recipe(
        {
            "student": {"model": "builtin:base"},
            "teachers": {"math": {"model": "builtin:math"}},
            "data": {"files": ["builtin:train.parquet"]},
            "train": {"steps": STEPS, "max_staleness": staleness},
        }
    )
    kind = sleeping(AheadCollector if staleness else Collector, sampling)
    started = time.perf_counter()
    with closing(kind(recipe, cast(Any, Task()), cast(Any, None), Display(), 1)) as batches:
        for step in range(1, STEPS + 1):
            batches.take(step)
            time.sleep(training[step - 1])
            batches.published(step)
    return STEPS / (time.perf_counter() - started)


def main() -> None:
    generator = np.random.default_rng(0)
    print("| sampling, training (mean ms) | spread | 1/(s+t) | 1/max(s, t) | staleness 0 | 1 | 2 | 4 |")
    print("|---|---|---|---|---|---|---|---|")
    for sample, train in ((100, 100), (150, 50), (50, 150)):
        for spread in (0.0, 0.5):
            times = [
                mean / 1000 * np.exp(generator.normal(-(spread**2) / 2, spread, STEPS))
                for mean in (sample, train)
            ]
            s, t = (float(values.mean()) for values in times)
            found = [steps_per_second(times[0], times[1], k) for k in (0, 1, 2, 4)]
            cells = [f"{1 / (s + t):.2f}", f"{1 / max(s, t):.2f}", *(f"{rate:.2f}" for rate in found)]
            print(f"| {sample}, {train} | {spread} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
