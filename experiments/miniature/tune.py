"""Chooses the learning rate: OPD from two teachers at each of RATES, measured on problems that it did not train on.

    python experiments/miniature/tune.py

The problems are of the training part, so that no held-out one is seen. What comes out is kept in `tuning.json` and used
unchanged for every cell that learns from teachers, ExOPD above all, as in the paper.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from cells import CELLS, PAIR, Size
from run import DATA_SEED, HERE, WORK, result_file, run, write_problems

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
SEED = 100
CELL = next(cell for cell in CELLS if cell.name == "two/opd")


def main() -> None:
    found = []
    for rate in RATES:
        size, work = replace(Size(), lr=rate), WORK / "tuning" / f"{rate:g}"
        write_tuning_data(work / "data", size)
        run([(CELL, SEED)], work / "results", work, size)
        entry = json.loads(result_file(work / "results", CELL, SEED).read_text())
        right = {d: float(np.mean([int(c) for c in entry["domains"][d]["right"]])) for d in PAIR}
        kl = {d: entry["domains"][d]["kl_to_teacher"] for d in PAIR}
        found.append({"lr": rate, "right": right, "kl_to_teacher": kl})
        print(found[-1], flush=True)
    (HERE / "tuning.json").write_text(json.dumps(found, indent=1) + "\n")


def write_tuning_data(folder: Path, size: Size) -> None:
    """The cell's training prompts, and other problems of the training part in the place of held-out ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain in PAIR:
        train = folder / f"train-{domain}-{size.steps}.parquet"
        write_problems(train, domain, "train", size.prompts * size.steps)
        taken = {row["extra_info"]["key"] for row in pq.read_table(train).to_pylist()}
        path = folder / f"heldout-{domain}.parquet"
        write_problems(path, domain, "train", size.problems, seed=DATA_SEED + 1, without=taken)


if __name__ == "__main__":
    main()
