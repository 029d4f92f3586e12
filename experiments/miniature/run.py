"""Runs the miniature: `make miniature`, or `python experiments/miniature/run.py [CELL ...] [--quick FOLDER]`.

Every cell is run for every seed, one on each core; what is finished in the same size is not run again, so a stopped run
goes on where it was. Figures are kept in `results/`, one small file per cell and seed; data and logs in
`runs/miniature/`. At the end the report is written anew.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Container
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import variance
from cells import CELLS, FOUR, Cell, Place, Size
from measure import load, measure
from problems import TEACHER_OF, Domain, Part, problem_row, problems
from rich.console import Console

from gopd.console import Display
from gopd.files import atomic_file, atomic_write

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
WORK = HERE.parents[1] / "runs" / "miniature"
DATA_SEED = 100
CURVES = ("entropy", "response_tokens/mean", "reward/tiny/arithmetic", "teacher/math/reference_gap")
QUICK = Size(prompts=4, steps=2, strong_steps=2, problems=12, seeds=2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cells", nargs="*", metavar="CELL", help="only these, or all whose name begins so")
    parser.add_argument(
        "--quick", type=Path, metavar="FOLDER", help="a few steps and problems, all into FOLDER"
    )
    parser.add_argument("--report", action="store_true", help="only write the report")
    options = parser.parse_args()
    results, work, size = RESULTS, WORK, Size()
    if options.quick is not None:
        results, work, size = options.quick / "results", options.quick / "work", QUICK
    chosen = [c for c in CELLS if not options.cells or c.name.startswith(tuple(options.cells))]
    if not chosen:
        parser.error(f"no such cell; there are: {', '.join(c.name for c in CELLS)}")
    if not options.report:
        write_data(work / "data", size)
        run([(cell, seed) for seed in range(size.seeds) for cell in chosen], results, work, size)
    if not options.cells:
        import report  # not by every worker: it loads matplotlib

        report.write(results, HERE if options.quick is None else options.quick, size)


def write_data(folder: Path, size: Size) -> None:
    """Held-out problems of every domain, and as many prompts as a run has use for, by the tiny family's generator."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain in FOUR:
        write_problems(folder / f"heldout-{domain}.parquet", domain, "heldout", size.problems)
        for steps in {size.steps, size.strong_steps}:
            write_problems(folder / f"train-{domain}-{steps}.parquet", domain, "train", size.prompts * steps)


def write_problems(
    path: Path, domain: Domain, part: Part, count: int, *, seed: int = DATA_SEED, without: Container[str] = ()
) -> None:
    """A file of problems, unless it is there: the first ones drawn whose keys are not in `without`."""
    if path.exists():
        return
    drawn = (problem_row(domain, problem) for problem in problems(domain, part, seed))
    found = islice((row for row in drawn if row["extra_info"]["key"] not in without), count)
    with atomic_file(path) as partial:
        pq.write_table(pa.Table.from_pylist(list(found)), partial)


def run(jobs: list[tuple[Cell, int]], results: Path, work: Path, size: Size) -> None:
    """Those that have no result yet, as many at a time as there are cores; one that fails does not stop the others."""
    missing = [job for job in jobs if not finished(result_file(results, *job), size)]
    print(f"{len(jobs) - len(missing)} of {len(jobs)} cells are finished", flush=True)
    started, failed = time.monotonic(), list[str]()
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in sorted(os.sched_getaffinity(0)):
        cores.put(core)
    with ProcessPoolExecutor(cores.qsize(), context, settle, (cores,)) as pool:
        running = {pool.submit(run_cell, c.name, seed, results, work, size): (c, seed) for c, seed in missing}
        try:
            for done, future in enumerate(as_completed(running), 1):
                cell, seed = running[future]
                error = future.exception()
                if error is not None:
                    failed.append(f"{cell.name}, seed {seed}")
                said = f"{future.result():.0f} s" if error is None else f"failed: {error}"
                left = (time.monotonic() - started) / done * (len(missing) - done) / 60
                print(
                    f"{done}/{len(missing)}  {cell.name}, seed {seed}: {said}; about {left:.0f} min left",
                    flush=True,
                )
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)
            raise
    if failed:
        sys.exit(f"failed: {'; '.join(failed)}. Their logs are in {work}; run again to go on.")


def settle(cores: Any) -> None:
    """A worker keeps to one core: two that share them slow each other down many times over."""
    os.sched_setaffinity(0, {cores.get()})
    torch.set_num_threads(1)


def result_file(results: Path, cell: Cell, seed: int) -> Path:
    return results / cell.name / f"{seed}.json"


def finished(path: Path, size: Size) -> bool:
    """Whether there is a result of the same size; how many seeds there are to be does not matter."""
    return path.exists() and json.loads(path.read_text())["size"] == asdict(replace(size, seeds=0))


def run_cell(name: str, seed: int, results: Path, work: Path, size: Size) -> float:
    """Makes a cell's model for one seed and measures it; returns the seconds it took."""
    (cell,) = (c for c in CELLS if c.name == name)
    started = time.monotonic()
    folder = work / name.replace("/", "-") / str(seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with (folder.parent / f"{seed}.log").open("w") as log, redirect_stdout(log):
        place = Place(folder, work / "data", size, seed, Display(Console(file=log, width=150)))
        entry: dict[str, Any]
        if cell.make is None:
            entry = {"variance": variance.measure(place)}
        else:
            entry = {"domains": measured(cell, place), "curves": curves(folder / "run" / "metrics.jsonl")}
    entry |= {"seconds": round(time.monotonic() - started, 1), "size": asdict(replace(size, seeds=0))}
    path = result_file(results, cell, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(entry) + "\n")
    shutil.rmtree(folder)
    return time.monotonic() - started


def measured(cell: Cell, place: Place) -> dict[str, Any]:
    """Figures of each of the cell's domains."""
    assert cell.make is not None
    model, base = load(cell.make(place)), load(cell.base)
    found = {}
    for domain in cell.domains:
        teacher = load(cell.teacher or f"builtin:{TEACHER_OF[domain]}")
        file = place.data / f"heldout-{domain}.parquet"
        found[domain] = asdict(measure(model, teacher, base, file, place.seed))
    return found


def curves(path: Path) -> dict[str, list[float]]:
    """Some figures of every step, and the seconds that steps took without the writing of metrics."""
    if not path.exists():
        return {}
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    found = {name: [round(s[name], 5) for s in steps] for name in CURVES if name in steps[0]}
    found["seconds"] = [round(sum(v for k, v in s.items() if k.startswith("seconds/")), 3) for s in steps]
    return found


if __name__ == "__main__":
    main()
