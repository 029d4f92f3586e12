"""Simulates the paper's multi-teacher step from 8 to 4,096 GPUs, and its recipes on 8: `scaling.json`, `scaling.svg`.

`python experiments/plan/scale.py`; two minutes. Predictions, no measurement.
"""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from gopd.plan.devices import gpu
from gopd.plan.layout import layout_of
from gopd.plan.propose import propose, section_yaml
from gopd.plan.show import as_json
from gopd.plan.simulate import SETTINGS, SIZES, Point, simulate
from gopd.plan.workload import Assumptions, Workload, workload_of
from gopd.recipe_file import load_recipe

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
GPU = "h100-80gb"


def recipes() -> dict[str, Any]:
    """Every recipe of the paper on 8 GPUs."""
    device, found = gpu(GPU), {}
    for path in sorted((ROOT / "recipes/paper").glob("*.yaml")):
        recipe = load_recipe(path)
        work = workload_of(recipe, Assumptions(), {}, device.element)
        choice = propose(work, layout_of(recipe, alone=False), device, 8)
        assert choice is not None, f"{path.stem} does not fit"
        found[path.stem] = as_json(choice) | {"yaml": section_yaml(choice, work.budget)}
    return found


def scaling() -> list[Point]:
    """Every setting at every size."""
    recipe = load_recipe(ROOT / "recipes/paper/multi-teacher.yaml")

    @functools.cache
    def make(factor: int) -> Workload:
        return workload_of(recipe, Assumptions(), {}, 2, factor=factor)

    return [point for setting in SETTINGS for point in simulate(make, setting, gpu(GPU))]


def plot(points: list[Point], path: Path) -> None:
    """Seconds a step, and tokens/s a device, against devices."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    best = next(p for p in points if p.devices == SIZES[0])
    for setting in SETTINGS:
        mine = [p for p in points if p.setting == setting.name]
        sizes = [p.devices for p in mine]
        left.plot(sizes, [p.timing.seconds for p in mine], marker="o", markersize=3, label=setting.name)
        right.plot(sizes, [p.per_device for p in mine], marker="o", markersize=3, label=setting.name)
    ideal = [best.timing.seconds * SIZES[0] / n for n in SIZES]
    left.plot(SIZES, ideal, color="grey", linestyle=":", label="as it is, without losses")
    for axes, title in ((left, "seconds a step"), (right, "tokens/s a GPU")):
        axes.set(xscale="log", xlabel="GPUs", title=f"{title} (prediction)")
        axes.set_xticks(SIZES, [str(n) for n in SIZES], rotation=45, minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.set_yscale("log")
    left.legend(fontsize=7)
    right.set_ylim(0)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    points = scaling()
    tree = {"gpu": GPU, "recipes": recipes(), "scaling": [asdict(point) for point in points]}
    (FOLDER / "scaling.json").write_text(json.dumps(tree, indent=1) + "\n")
    plot(points, FOLDER / "scaling.svg")


if __name__ == "__main__":
    main()
