"""The figures of the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from cells import ESTIMATORS, FOUR, MATH, PAIR, SCALES
from claims import LABELS
from intervals import Interval, Results, interval
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from problems import TEACHER_OF

matplotlib.use("Agg")
from matplotlib import pyplot

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Told apart by the colour-blind (Okabe and Ito)."""
SMOOTHED = 5


def write(results: Results, folder: Path, prompts: int) -> None:
    """All figures as PNG."""
    sweep(results, folder / "sweep.png")
    rewards(results, folder / "rewards.png")
    methods(results, folder / "methods.png")
    estimators(results, folder / "estimators.png", prompts)


def sweep(results: Results, path: Path) -> None:
    """Accuracy, length, entropy and the two divergences by reward scale (Figs 2 to 4)."""
    panels = ("accuracy", "response length (tokens)", "entropy (nats/token)", "KL (nats/token)")
    figure, axes = pyplot.subplots(2, 4, figsize=(15, 6.5), sharex=True)
    for row, domain in zip(axes, PAIR, strict=True):
        name = TEACHER_OF[domain]
        cells = [f"single/{name}/{scale:g}" for scale in SCALES]
        _line(row[0], SCALES, [results.accuracy(c, domain) for c in cells], "student", 0)
        for number, (label, model) in enumerate((("teacher", name), ("base", "base")), 1):
            level = results.accuracy(f"models/{model}", domain)
            row[0].axhspan(level.low, level.high, color=COLOURS[number], alpha=0.15, lw=0)
            row[0].axhline(level.mean, color=COLOURS[number], ls="--", label=label)
        for axis, key in zip(row[1:3], ("tokens", "entropy"), strict=True):
            _line(axis, SCALES, [results.figure(c, domain, key) for c in cells], "student", 0)
        for number, key in enumerate(("kl_to_teacher", "kl_to_base"), 1):
            label = key.replace("_", " ").replace("kl", "KL")
            _line(row[3], SCALES, [results.figure(c, domain, key) for c in cells], label, number)
        for axis, title in zip(row, panels, strict=True):
            axis.set_title(f"{domain}: {title}", fontsize=10)
        row[0].legend(fontsize=8)
        row[3].legend(fontsize=8)
    for axis in axes[1]:
        axis.set_xlabel("reward scale λ")
    _save(figure, path)


def rewards(results: Results, path: Path) -> None:
    """True reward against implicit reward: do they part as λ grows?"""
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.2))
    for axis, domain in zip(axes, PAIR, strict=True):
        cells = [f"single/{TEACHER_OF[domain]}/{scale:g}" for scale in SCALES]
        across = [results.figure(c, domain, "implicit") for c in cells]
        up = [results.accuracy(c, domain) for c in cells]
        axis.errorbar(
            [i.mean for i in across],
            [i.mean for i in up],
            xerr=_bars(across),
            yerr=_bars(up),
            marker="o",
            color=COLOURS[0],
            capsize=2,
        )
        for scale, x, y in zip(SCALES, across, up, strict=True):
            axis.annotate(
                f"λ = {scale:g}",
                (x.mean, y.high),
                textcoords="offset points",
                xytext=(0, 4),
                ha="center",
                rotation=90,
                fontsize=7,
            )
        axis.margins(y=0.17)
        axis.set(
            title=domain, xlabel="implicit reward ℓ_T − ℓ_R (nats/token)", ylabel="accuracy (true reward)"
        )
    _save(figure, path)


def methods(results: Results, path: Path) -> None:
    """Accuracy of every method of Tables 2, 3 and 8, by domain."""
    groups = {
        "two teachers": ("two", PAIR, tuple(LABELS)),
        "four teachers": ("four", FOUR, tuple(LABELS)),
        "saturated teachers": ("saturated", PAIR, ("opd", "exopd")),
        "strong to weak": ("strong", MATH, ("sft", "opd", "exopd", "exopd-corrected")),
    }
    figure, axes = pyplot.subplots(1, 4, figsize=(16, 4.6), sharey=True)
    for axis, (title, (group, domains, names)) in zip(axes, groups.items(), strict=True):
        for number, domain in enumerate(domains):
            levels = [results.accuracy(f"{group}/{name}", domain) for name in names]
            places = np.arange(len(names)) + (number - (len(domains) - 1) / 2) * 0.16
            axis.errorbar(
                places,
                [i.mean for i in levels],
                yerr=_bars(levels),
                fmt="o",
                color=COLOURS[number],
                capsize=2,
                label=domain,
            )
        axis.set_xticks(
            range(len(names)), [LABELS.get(n, "ExOPD, corrected") for n in names], rotation=35, ha="right"
        )
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_title(title, fontsize=11)
        axis.legend(fontsize=8)
    axes[0].set_ylabel("accuracy")
    _save(figure, path)


def estimators(results: Results, path: Path, prompts: int) -> None:
    """Training accuracy against prompts and against seconds, and the gradients' variance."""
    names = {"sampled": "single/math/1.25"} | {name: f"estimators/{name}" for name in ESTIMATORS}
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.2))
    for number, (name, cell) in enumerate(names.items()):
        curves = [entry["curves"] for entry in results.entries(cell)]
        seeds = np.array([_smooth(c["reward/tiny/arithmetic"]) for c in curves])
        levels = [interval([step[:, None]]) for step in seeds.T]
        seconds = np.mean([np.cumsum(c["seconds"]) for c in curves], axis=0)
        seen = prompts * np.arange(1, len(levels) + 1)
        for axis, across in zip(axes[:2], (seen, seconds), strict=True):
            axis.plot(across, [i.mean for i in levels], color=COLOURS[number], label=name)
            low, high = [i.low for i in levels], [i.high for i in levels]
            axis.fill_between(across, low, high, color=COLOURS[number], alpha=0.15, lw=0)
    found = [entry["variance"] for entry in results.entries("estimators/variance")]
    for number, name in enumerate(names):
        noise = [np.sqrt(max(0.0, v[name]["variance"]) / v["full"]["signal"]) for v in found]
        axes[2].bar(number, np.mean(noise), color=COLOURS[number])
        axes[2].plot([number] * len(noise), noise, "k.", ms=4)
    axes[0].set(xlabel="prompts seen", ylabel="accuracy on them, before learning from them")
    axes[1].set(xlabel="seconds on one core")
    axes[2].set_xticks(range(len(names)), names, fontsize=8)
    axes[2].set_ylabel("noise of a step's gradient ÷ its mean's length")
    axes[0].legend(fontsize=8)
    _save(figure, path)


def _line(axis: Axes, x: Sequence[float], levels: Sequence[Interval], label: str, number: int) -> None:
    axis.errorbar(
        x,
        [i.mean for i in levels],
        yerr=_bars(levels),
        marker="o",
        ms=4,
        capsize=2,
        color=COLOURS[number],
        label=label,
    )


def _bars(levels: Sequence[Interval]) -> np.ndarray:
    return np.array([[i.mean - i.low for i in levels], [i.high - i.mean for i in levels]]).clip(0)


def _smooth(values: Sequence[float]) -> np.ndarray:
    """Mean of the last few."""
    return np.array([np.mean(values[max(0, i - SMOOTHED + 1) : i + 1]) for i in range(len(values))])


def _save(figure: Figure, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
