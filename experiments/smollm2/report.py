"""The report of the SmolLM2 runs: a table, curves, and responses before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pyarrow.parquet as pq
from yardstick import SCALES, measure

from gopd.tracking import read_metrics, rollouts_file

PANELS = {
    "kl_to_target": "KL to the target, training rollouts (nats/token)",
    "teacher/itself/advantage_mean": "mean advantage",
    "response_tokens/mean": "response length (tokens)",
    "reward/gsm8k": "reward (share right)",
}
PHASES = ("sample", "verify", "score", "update")
START = "models/smollm2"
WINDOW = 5
SAMPLES = 3


def write_report(folder: Path, runs: Mapping[str, Path]) -> None:
    """Writes `results.md`, `curves.png` and `samples.md` about finished runs into a folder."""
    metrics = {name: read_metrics(run / "metrics.jsonl") for name, run in runs.items()}
    validations = {name: read_metrics(run / "validation.jsonl") for name, run in runs.items()}
    tables = table(metrics, validations) + "\n" + yardstick_table(runs, metrics)
    (folder / "results.md").write_text(tables, encoding="utf-8")
    plot(folder / "curves.png", metrics, validations)
    for name, run in runs.items():
        (folder / name / "samples.md").write_text(samples(run, len(metrics[name])), encoding="utf-8")


def table(
    metrics: Mapping[str, list[dict[str, Any]]], validations: Mapping[str, list[dict[str, Any]]]
) -> str:
    head = ["run", "steps", "held-out KL before", "after", "right before", "after", "s/step", *PHASES]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, entries in metrics.items():
        before, after = (validations[name][i]["domains"]["gsm8k"] for i in (0, -1))
        phases = [fmean(e[f"seconds/{phase}"] for e in entries) for phase in PHASES]
        right = [
            f"{100 * d['accuracy']:.1f}% [{100 * d['low']:.1f}, {100 * d['high']:.1f}]"
            for d in (before, after)
        ]
        kls = [f"{d['kl_to_target']:.4f} [{d['kl_low']:.4f}, {d['kl_high']:.4f}]" for d in (before, after)]
        figures = [name, str(len(entries)), *kls, *right, f"{sum(phases):.1f}", *(f"{s:.1f}" for s in phases)]
        lines.append("| " + " | ".join(figures) + " |")
    return "\n".join(lines) + "\n"


def yardstick_table(runs: Mapping[str, Path], metrics: Mapping[str, list[dict[str, Any]]]) -> str:
    """Every student's held-out KL to the targets of both reward scales."""
    lines = [
        "| student | " + " | ".join(f"KL to the target of λ = {s}" for s in SCALES) + " |",
        "|---|---|---|",
    ]
    steps = [(next(iter(runs)), 0), *((name, len(entries)) for name, entries in metrics.items())]
    for name, step in steps:
        found = measure(runs[name], step, START).values()
        cells = [f"{kl:.4f} [{low:.4f}, {high:.4f}]" for kl, low, high in found]
        lines.append(f"| {name if step else 'before training'} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def plot(
    path: Path, metrics: Mapping[str, list[dict[str, Any]]], validations: Mapping[str, list[dict[str, Any]]]
) -> None:
    mpl.use("Agg")
    figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for axis, (key, title) in zip(axes.flat, PANELS.items(), strict=True):
        for name, entries in metrics.items():
            values = [e[key] for e in entries]
            smooth = [fmean(values[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(values))]
            (line,) = axis.plot(range(1, len(values) + 1), smooth, label=name)
            axis.plot(range(1, len(values) + 1), values, color=line.get_color(), alpha=0.25, linewidth=0.8)
            if key == "kl_to_target":
                ends = [(v["step"], v["domains"]["gsm8k"]["kl_to_target"]) for v in validations[name]]
                axis.plot(*zip(*ends, strict=True), "o--", color=line.get_color(), linewidth=0.8)
        axis.set(title=title, xlabel="optimizer step")
        axis.grid(alpha=0.3)
        if key.startswith("reward"):
            axis.set_ylim(0, max(0.1, axis.get_ylim()[1]))
    axes[0, 0].legend(title=f"mean of {WINDOW} steps; dots: held out, exact", fontsize=8, title_fontsize=8)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def samples(run: Path, last: int) -> str:
    folder = run / "validation" / "student"
    pairs = zip(*(pq.read_table(rollouts_file(folder, step)).to_pylist() for step in (0, last)), strict=True)
    parts = []
    for before, after in list(pairs)[:SAMPLES]:
        parts.append(f"## {before['prompt']}\n")
        parts += [
            f"**{label}**\n\n```\n{row['response']}\n```\n"
            for label, row in (("before", before), ("after", after))
        ]
    return "\n".join(parts)
