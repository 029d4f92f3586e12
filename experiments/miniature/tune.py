"""Chooses the learning rate: OPD from two teachers at each of RATES, measured on problems that nothing else uses.

    python experiments/miniature/tune.py

The problems are of the training part, none of them a training prompt. What comes out is kept in `tuning.json` and used
unchanged for every other cell, ExOPD above all, as in the paper.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from cells import CELLS, PAIR, Size
from problems import rows
from run import DATA_SEED, HERE, WORK, result_file, run, write_data

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
SEED = 100
CELL = next(cell for cell in CELLS if cell.name == "two/opd")


def main() -> None:
    found = []
    for rate in RATES:
        size, work = replace(Size(), lr=rate), WORK / "tuning" / f"{rate:g}"
        write_problems(work / "data", size)
        run([(CELL, SEED)], work / "results", work, size)
        entry = json.loads(result_file(work / "results", CELL, SEED).read_text())
        right = {d: float(np.mean([int(c) for c in entry["domains"][d]["right"]])) for d in PAIR}
        kl = {d: entry["domains"][d]["kl_to_teacher"] for d in PAIR}
        found.append({"lr": rate, "right": right, "kl_to_teacher": kl})
        print(found[-1], flush=True)
    (HERE / "tuning.json").write_text(json.dumps(found, indent=1) + "\n")


def write_problems(folder: Path, size: Size) -> None:
    """The training prompts of all cells, and other problems of the training part in the place of held-out ones."""
    write_data(folder, size)
    for domain in PAIR:
        known = pq.read_table(folder / f"train-{domain}.parquet").to_pylist()
        taken = {row["extra_info"]["key"] for row in known}
        drawn = rows(domain, "train", 2 * size.problems, seed=DATA_SEED + 1)
        others = [row for row in drawn if row["extra_info"]["key"] not in taken][: size.problems]
        assert len(others) == size.problems
        path = folder / f"heldout-{domain}.parquet"
        partial = path.with_name("partial")
        pq.write_table(
            pa.Table.from_pylist([{k: v for k, v in r.items() if k != "response"} for r in others]), partial
        )
        shutil.move(partial, path)


if __name__ == "__main__":
    main()
