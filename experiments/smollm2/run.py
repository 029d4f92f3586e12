"""SmolLM2-135M distilled on GSM8K from itself with the worked solution in view: the runs, then one report.

    make smollm2
    .venv/bin/python experiments/smollm2/run.py --data FOLDER      # gsm8k_*.jsonl; without --data: Hub
    .venv/bin/python experiments/smollm2/run.py --report           # figures, plots and samples of the runs so far

Each run is resumable; finished ones are not redone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import yaml
from report import write_report

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "smollm2"
CELLS = {
    "sampled-1.25": [],
    "sampled-1.0": ["objective.reward_scale=1.0"],
    "full-1.25": ["objective.estimator=full"],
    "full-1.0": ["objective.estimator=full", "objective.reward_scale=1.0"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cells", nargs="*", metavar="CELL", help=f"of {', '.join(CELLS)}; default all")
    parser.add_argument("--data", type=Path, help="folder with gsm8k_train.jsonl and gsm8k_test.jsonl")
    parser.add_argument("--report", action="store_true", help="only write the report")
    options = parser.parse_args()
    if unknown := set(options.cells) - CELLS.keys():
        parser.error(f"no such cell: {', '.join(sorted(unknown))}")
    for cell in [] if options.report else options.cells or CELLS:
        train(cell, options.data)
    finished = {cell: RUNS / cell for cell in CELLS if (RUNS / cell / "student").exists()}
    for cell, run in finished.items():
        keep(run, HERE / cell)
    write_report(HERE, finished)


def keep(run: Path, folder: Path) -> None:
    """Copies a run's figures, without the places that files had on this machine."""
    folder.mkdir(exist_ok=True)
    for name in ("metrics.jsonl", "validation.jsonl"):
        shutil.copy(run / name, folder / name)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    recipe["tracking"]["folder"] = RUNS.relative_to(ROOT).as_posix()
    for section in ("data", "validation"):
        recipe[section]["files"] = [Path(file).name for file in recipe[section]["files"]]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    versions = json.loads((run / "versions.json").read_text(encoding="utf-8"))
    del versions["platform"]
    (folder / "versions.json").write_text(json.dumps(versions, indent=1) + "\n", encoding="utf-8")


def train(cell: str, data: Path | None) -> None:
    overrides = [*CELLS[cell], f"tracking.folder={RUNS}", f"tracking.name={cell}"]
    if data is not None:
        for section, part in (("data", "train"), ("validation", "test")):
            overrides += [
                f"{section}.hub=null",
                f"{section}.files=[{data.resolve() / f'gsm8k_{part}.jsonl'}]",
            ]
    recipe = ROOT / "recipes" / "smollm2-gsm8k.yaml"
    command = [sys.executable, "-m", "gopd.cli", "train", str(recipe), *overrides]
    subprocess.run(command + ["--resume"] * (RUNS / cell).exists(), cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
