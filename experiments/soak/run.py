"""Hours of training and grading, with memory, descriptors, threads, processes and disk sampled: do they stay flat?

    python experiments/soak/run.py --hours 3

Two teachers, λ = 1.25, every response graded (programs run in the sandbox), validation and checkpoints as usual.
Samples go to `samples.csv` as they are taken, figures to `results.json` and `soak.png`; `--report` makes the figures
of the samples that are there.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OVERRIDES = (
    *("train.steps=1000000", "train.prompts_per_step=64", "data.verifier=auto", "optim.schedule=constant"),
    *("optim.lr=1e-5", "validation.limit=50", "validation.every=100", "validation.teachers=false"),
    *("checkpoint.every=50", "tracking.rollouts_every=100", "tracking.name=soak"),
)
FIELDS = {
    "trainer": "resident memory of the trainer (MB)",
    "workers": "resident memory of its workers (MB)",
    "temporary": "files in TMPDIR",
    "descriptors": "open descriptors",
    "threads": "threads",
    "processes": "processes",
    "checkpoints": "checkpoints on disk (MB)",
    "logs": "metrics, validations and rollouts on disk (MB)",
}
WARM = 0.1
"""Share of the time that is left out of the trend: caches fill, the first validation allocates."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=3.0)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between samples")
    parser.add_argument("--to", type=Path, default=HERE)
    parser.add_argument("--report", action="store_true", help="only make the figures of the samples")
    options = parser.parse_args()
    if not options.report:
        options.to.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="soak-") as work:
            soak(Path(work), options.to / "samples.csv", options.hours * 3600, options.every)
    report(options.to)


def soak(work: Path, samples: Path, seconds: float, every: float) -> None:
    """Trains for so long, then stops as Ctrl-C does; fails when the run does."""
    temporary = work / "tmp"
    temporary.mkdir()
    recipe = ROOT / "recipes" / "quickstart.yaml"
    command = [sys.executable, "-m", "gopd.cli", "train", recipe, *OVERRIDES, f"tracking.folder={work}"]
    with samples.open("w", newline="") as file, (work / "output").open("w") as output:
        writer = csv.DictWriter(file, ["seconds", "step", *FIELDS])
        writer.writeheader()
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env=os.environ | {"TMPDIR": str(temporary)}
        )
        start = time.monotonic()
        while (passed := time.monotonic() - start) < seconds and process.poll() is None:
            writer.writerow({"seconds": round(passed, 1), **sample(process.pid, work / "soak", temporary)})
            file.flush()
            time.sleep(every)
        process.send_signal(signal.SIGINT)
        code = process.wait(300)
    if passed < seconds or code != 130:
        sys.exit(f"the run ended with {code} after {passed:.0f} s:\n{(work / 'output').read_text()[-2000:]}")


def sample(pid: int, run: Path, temporary: Path) -> dict[str, float]:
    """What the process and all that it started hold now, and what it has written."""
    root = psutil.Process(pid)
    living: list[dict[str, int]] = []
    for process in [root, *root.children(recursive=True)]:
        try:
            with process.oneshot():
                living.append(
                    {
                        "resident": process.memory_info().rss,
                        "descriptors": process.num_fds(),
                        "threads": process.num_threads(),
                    }
                )
        except psutil.Error:  # it has just ended
            continue
    checkpoints = size(run / "checkpoints")
    return {
        "step": steps(run / "metrics.jsonl"),
        "trainer": round(living[0]["resident"] / 1e6, 1),
        "workers": round(sum(each["resident"] for each in living[1:]) / 1e6, 1),
        "temporary": sum(1 for _ in temporary.rglob("*")),
        "descriptors": sum(each["descriptors"] for each in living),
        "threads": sum(each["threads"] for each in living),
        "processes": len(living),
        "checkpoints": round(checkpoints / 1e6, 2),
        "logs": round((size(run) - checkpoints) / 1e6, 2),
    }


def size(folder: Path) -> int:
    """Bytes of all files that stay there for the time of counting."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def steps(metrics: Path) -> int:
    try:
        return metrics.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def report(folder: Path) -> None:
    """`results.json` and `soak.png` of `samples.csv`."""
    with (folder / "samples.csv").open(newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    hours = np.array([row["seconds"] for row in rows]) / 3600
    warm = hours >= WARM * hours[-1]
    found = {name: trend(hours[warm], np.array([row[name] for row in rows])[warm]) for name in FIELDS}
    results = {"hours": round(float(hours[-1]), 2), "steps": rows[-1]["step"], "samples": len(rows), **found}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    plot(folder / "soak.png", hours, rows)


def trend(hours: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Least, middle and most, and the growth per hour: the median slope of pairs half the time apart (Theil-Sen)."""
    half = len(values) // 2
    slopes = (values[half : 2 * half] - values[:half]) / (hours[half : 2 * half] - hours[:half])
    return {
        "least": float(values.min()),
        "median": float(np.median(values)),
        "most": float(values.max()),
        "per hour": round(float(np.median(slopes)), 3),
    }


def plot(path: Path, hours: np.ndarray, rows: Sequence[dict[str, float]]) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 3, figsize=(12, 8), sharex=True, layout="constrained")
    panels = {"step": "steps done"} | FIELDS
    for axis, (name, title) in zip(axes.flat, panels.items(), strict=True):
        axis.plot(hours, [row[name] for row in rows], linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(bottom=0)
    for axis in axes[-1]:
        axis.set_xlabel("hours")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
