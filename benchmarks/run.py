"""Measures gopd on this machine against its limits and against peers; `make bench` and `make bench-quick`.

    .venv/bin/python benchmarks/run.py [PART ...] [--quick] [--gsm8k FOLDER] [--report]

Each part writes one JSON file. A run goes on where the last one of the same commit on the same machine was stopped,
unless --anew. Nothing else should be busy on the machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import models
import torch

HERE = Path(__file__).resolve().parent
PARTS = ("limits", "startup", "step", "floors", "sampling", "passes", "objective", "growth", "roles")
EXTRA = ("compiled", "grading")
"""Parts that are run only when named."""
PACKAGES = ("torch", "transformers", "trl", "accelerate")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts",
        nargs="*",
        metavar="PART",
        help=f"of {', '.join(PARTS)}; default all these; or {', '.join(EXTRA)}",
    )
    parser.add_argument("--quick", action="store_true", help="small models and sizes, a few minutes")
    parser.add_argument("--gsm8k", type=Path, help="folder with gsm8k_train.jsonl, for natural lengths")
    parser.add_argument("--anew", action="store_true", help="measure finished parts again")
    parser.add_argument("--report", action="store_true", help="only write docs/performance.md's figures")
    options = parser.parse_args()
    if unknown := set(options.parts) - {*PARTS, *EXTRA}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    folder = models.ROOT / "runs" / "benchmarks" / "quick" if options.quick else HERE / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for part in [] if options.report else options.parts or PARTS:
        path = folder / f"{part}.json"
        if not (options.anew or options.quick) and measured(path):
            print(f"{part}: measured before, in {path}")
            continue
        # A process each: what one part does to memory and threads must not reach the next.
        process = get_context("spawn").Process(
            target=measure, args=(part, path, options.quick, options.gsm8k)
        )
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(f"{part} failed with exit code {process.exitcode}")
    if not options.quick:
        importlib.import_module("report").write(folder)


def measured(path: Path) -> bool:
    """Whether a part's results are there, of this very commit and machine."""
    if not path.exists():
        return False
    before, now = json.loads(path.read_text())["machine"], machine()
    return before | {"time": ""} == now | {"time": ""}


def measure(part: str, path: Path, quick: bool, gsm8k: Path | None) -> None:
    """Runs one part and writes its results."""
    print(f"{part}:", flush=True)
    start = time.perf_counter()
    result = importlib.import_module(part).run(quick, gsm8k)
    seconds = time.perf_counter() - start
    path.write_text(json.dumps({"machine": machine(), "seconds": seconds, part: result}, indent=1) + "\n")
    print(f"  ({seconds:.0f} s)", flush=True)


def machine() -> dict[str, str | int]:
    """Where and with what it was measured."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "processor": names[0].partition(":")[2].strip() if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    } | {name: version(name) for name in PACKAGES}


def commit() -> str:
    """What was measured: the commit, with a mark when package or benchmarks differ from it; empty without git."""
    git = ["git", "-C", str(models.ROOT)]
    found = subprocess.run(
        [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=False
    )
    changes = [*git, "diff", "--quiet", "HEAD", "--", "src", "benchmarks", ":!benchmarks/results"]
    changed = found.returncode == 0 and subprocess.run(changes, check=False).returncode != 0
    return found.stdout.strip() + " with changes" * changed


if __name__ == "__main__":
    main()
