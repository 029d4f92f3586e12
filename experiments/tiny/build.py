"""Rebuilds the tiny family: `python experiments/tiny/build.py`, from anywhere, no arguments.

Data, tokenizer and random starts are made first, then `gopd train` runs the recipes beside this file in
order, and each trained student is cast to bfloat16, measured on the held-out problems and installed into the
package with its model card. A finished stage is not redone; delete `scratch/` to start over.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from models import make_tokenizer, save_initial
from problems import Domain, Part, Row, rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from gopd.model import load_model
from gopd.recipe_file import load_recipe
from gopd.rollouts import grade, prompt_set, sample_rollouts
from gopd.sampler.torch import TorchSampler
from gopd.sections import ModelSpec, SamplingSection, SourceSection, View
from gopd.validate import Domain as Figures
from gopd.validate import summarize

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRATCH = HERE / "scratch"
PACKAGE = ROOT / "src" / "gopd" / "tiny"

SEED = 0
MISTAKE_RATE: dict[Domain, float] = {"arithmetic": 0.4, "lists": 0.65}  # in the mixed data
DEMONSTRATIONS: dict[str, dict[Domain, int]] = {
    "mixed": {"arithmetic": 40_000, "lists": 10_000},
    "math": {"arithmetic": 4_000},
    "code": {"lists": 4_000},
}
TRAIN_PROMPTS, HELD_OUT_PROMPTS = 2_000, 500  # per domain
ABOUT = {
    "base": ("small", "mixed-quality demonstrations of both domains"),
    "math": ("small", "error-free arithmetic demonstrations, starting from `base`"),
    "code": ("small", "error-free list-function demonstrations, starting from `base`"),
    "large-base": ("large", "mixed-quality demonstrations of both domains"),
    "large-math": ("large", "error-free arithmetic demonstrations, starting from `large-base`"),
}


def main() -> None:
    SCRATCH.mkdir(exist_ok=True)
    PACKAGE.mkdir(exist_ok=True)
    for name in DEMONSTRATIONS:
        once(SCRATCH / f"{name}.jsonl", lambda path, name=name: write_demonstrations(path, name))
    once(PACKAGE / "train.parquet", lambda path: write_parquet(path, alternating("train", TRAIN_PROMPTS)))
    once(
        PACKAGE / "heldout.parquet",
        lambda path: write_parquet(path, alternating("heldout", HELD_OUT_PROMPTS)),
    )
    tokenizer = make_tokenizer(SEED)
    for shape in ("small", "large"):
        once(
            SCRATCH / f"initial-{shape}", lambda path, shape=shape: save_initial(path, shape, tokenizer, SEED)
        )
    for name in ABOUT:
        install(name, train(name))


def once(path: Path, make: Callable[[Path], None]) -> None:
    """Makes a file or folder unless it is there; it appears under its name only when complete."""
    if path.exists():
        return
    print(f"making {path.relative_to(ROOT)}", flush=True)
    partial = path.with_name(f"partial-{path.name}")
    if partial.is_dir():
        shutil.rmtree(partial)
    make(partial)
    partial.rename(path)


def write_demonstrations(path: Path, name: str) -> None:
    mixed = name == "mixed"
    seed = SEED if mixed else SEED + 1
    found = [
        row
        for domain, count in DEMONSTRATIONS[name].items()
        for row in rows(
            domain, "train", count, seed=seed, mistake_rate=MISTAKE_RATE[domain] if mixed else 0.0
        )
    ]
    random.Random(SEED).shuffle(found)
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def alternating(part: Part, count: int) -> list[Row]:
    """`count` problems of each domain, taking turns, so that any first rows hold both; no demonstrations."""
    pair = [rows(domain, part, count, seed=SEED + 2) for domain in ("arithmetic", "lists")]
    return [
        {k: v for k, v in row.items() if k != "response"} for turn in zip(*pair, strict=True) for row in turn
    ]


def write_parquet(path: Path, found: Iterable[Row]) -> None:
    table = pa.Table.from_pylist(list(found))
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=False)


def train(name: str) -> Path:
    """Runs one recipe with `gopd train`, or resumes it; returns the trained student's folder."""
    recipe = load_recipe(HERE / f"{name}.yaml")
    run = ROOT / recipe.tracking.folder / name
    if not (run / "student").exists():
        command = [sys.executable, "-m", "gopd.cli", "train", str(HERE / f"{name}.yaml")]
        subprocess.run(command + ["--resume"] * run.exists(), cwd=ROOT, check=True)
    return run / "student"


def install(name: str, student: Path) -> None:
    """Casts a student to bfloat16 inside the package, measures what will ship, and writes its card."""
    folder = PACKAGE / name

    def make(path: Path) -> None:
        AutoModelForCausalLM.from_pretrained(student, dtype=torch.bfloat16).save_pretrained(path)
        AutoTokenizer.from_pretrained(student).save_pretrained(path)
        domains = measure(path)
        (path / "README.md").write_text(card(name, path, domains), encoding="utf-8")
        print(name, *(f"{domain} {shown(figures)}" for domain, figures in domains.items()), flush=True)

    once(folder, make)


def measure(folder: Path) -> Mapping[str, Figures]:
    """Samples one response per held-out problem at temperature 1 and grades it; figures per domain."""
    model = load_model(ModelSpec(model=str(folder)), "model", device=torch.device("cpu"), dtype=torch.float32)
    source = SourceSection(files=(str(PACKAGE / "heldout.parquet"),))
    rollouts = sample_rollouts(
        TorchSampler(model, slots=128),
        model,
        prompt_set(source, model.tokenizer, model.name, View(), limit=64),
        SamplingSection(),
        samples=1,
        max_response_tokens=48,
        stream=(SEED,),
        progress=lambda done, total, tokens: None,
    )
    grade(rollouts)
    return summarize(0, folder.name, rollouts, [None] * len(rollouts)).domains


def shown(domain: Figures) -> str:
    assert domain.accuracy is not None and domain.low is not None and domain.high is not None
    return f"{100 * domain.accuracy:.1f}% [{100 * domain.low:.1f}, {100 * domain.high:.1f}]"


def card(name: str, folder: Path, domains: Mapping[str, Figures]) -> str:
    shape, data = ABOUT[name]
    recipe = load_recipe(HERE / f"{name}.yaml")
    model = AutoModelForCausalLM.from_pretrained(folder)
    rows = "\n".join(
        f"| {domain} | {figures.problems} | {shown(figures)} |" for domain, figures in domains.items()
    )
    rates = ", ".join(f"{rate:g} ({domain})" for domain, rate in MISTAKE_RATE.items())
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# gopd tiny family: {name}

A {model.num_parameters():,}-parameter Qwen3-architecture model ({shape} size, bfloat16) for trying on-policy
distillation on a laptop. It does two things only: arithmetic problems answered in `\\boxed{{}}`, and Python
functions `f(xs)` that transform a list. It is of no use for anything else.

How it was made: supervised fine-tuning on {data}; {recipe.train.steps} steps
of {recipe.train.prompts_per_step} demonstrations, AdamW, learning rate {recipe.optim.lr:g}
({recipe.optim.schedule} schedule), seed {recipe.train.seed}. All data is generated. In mixed-quality data
a demonstration has one mistake with probability {rates}.
`experiments/tiny/build.py` rebuilds it.

Accuracy on held-out problems, one sample each at temperature 1, with 95% bootstrap intervals:

| domain | problems | accuracy |
|---|---|---|
{rows}

Held-out problems are chosen by a hash of their canonical content and never appear in training data.
Licence: Apache-2.0.
"""


if __name__ == "__main__":
    main()
