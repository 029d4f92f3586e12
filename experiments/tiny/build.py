"""Builds the tiny family: `python experiments/tiny/build.py [MODEL ...]`, from anywhere; all models by default.

Data, tokenizer and random starts are made first. Then `gopd train` runs a recipe beside this file for each model, in
order: the bases learn from demonstrations, the teachers from rewards. Each trained student is cast to bfloat16,
measured on the held-out problems and installed into the package with its model card, and what is made from it starts
from there. A finished stage is not redone: to build everything anew, delete `scratch/` and `src/gopd/tiny` first.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from models import save_initial
from problems import Domain, Part, Row, problem_row, problems, rows
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
DEMONSTRATIONS: dict[Domain, tuple[int, float]] = {
    "arithmetic": (40_000, 0.4),
    "lists": (10_000, 0.65),
    "sequences": (8_000, 0.4),
    "strings": (10_000, 0.65),
}
"""How many the bases learn from, and the share of them with a mistake."""
FILES: dict[str, tuple[Part, tuple[Domain, Domain], int]] = {
    "train.parquet": ("train", ("arithmetic", "lists"), 2_000),
    "heldout.parquet": ("heldout", ("arithmetic", "lists"), 500),
    "more-train.parquet": ("train", ("sequences", "strings"), 2_000),
    "more-heldout.parquet": ("heldout", ("sequences", "strings"), 500),
}
"""Data that ships: part, domains, problems of each."""


@dataclass(frozen=True)
class Plan:
    """How a model is made: its size, its recipe, what the recipe is changed by, and that in words."""

    size: str
    recipe: str
    changes: tuple[str, ...]
    words: str


def taught(base: str, domain: Domain, steps: int, size: str = "small") -> Plan:
    """A teacher by reinforcement learning in one domain."""
    more = "more-" if domain in ("sequences", "strings") else ""
    changes = (
        f"student.model=builtin:{base}",
        f"data.files=[builtin:{more}train.parquet]",
        f"data.keep_sources=[tiny/{domain}]",
        f"train.steps={steps}",
    )
    return Plan(size, "teacher.yaml", changes, f"reinforcement learning on {domain}, starting from `{base}`")


MODELS = {
    "base": Plan("small", "base.yaml", (), "mixed-quality demonstrations of all four domains"),
    "math": taught("base", "arithmetic", 40),
    "code": taught("base", "lists", 10),
    "sequences": taught("base", "sequences", 80),
    "strings": taught("base", "strings", 10),
    "math-saturated": taught("base", "arithmetic", 400),
    "code-saturated": taught("base", "lists", 60),
    "large-base": Plan(
        "large",
        "base.yaml",
        ("student.model=experiments/tiny/scratch/initial-large", "optim.lr=2e-3", "train.steps=1600"),
        "mixed-quality demonstrations of all four domains",
    ),
    "large-math": taught("large-base", "arithmetic", 60, "large"),
}


def main() -> None:
    names = sys.argv[1:] or list(MODELS)
    SCRATCH.mkdir(exist_ok=True)
    PACKAGE.mkdir(exist_ok=True)
    once(SCRATCH / "mixed.jsonl", write_demonstrations)
    for file, (part, domains, count) in FILES.items():
        once(PACKAGE / file, partial(write_parquet, part, domains, count))
    for size in ("small", "large"):
        once(SCRATCH / f"initial-{size}", partial(save_initial, size, SEED))
    for name in names:
        once(PACKAGE / name, partial(install, name))


def once(path: Path, make: Callable[[Path], None]) -> None:
    """Makes a file or folder unless it is there; it appears under its name only when complete."""
    if path.exists():
        return
    print(f"making {path.relative_to(ROOT)}", flush=True)
    unfinished = path.with_name(f"partial-{path.name}")
    if unfinished.is_dir():
        shutil.rmtree(unfinished)
    make(unfinished)
    unfinished.rename(path)


def write_demonstrations(path: Path) -> None:
    found = [
        row
        for domain, (count, mistakes) in DEMONSTRATIONS.items()
        for row in rows(domain, "train", count, seed=SEED, mistake_rate=mistakes)
    ]
    random.Random(SEED).shuffle(found)
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


def alternating(part: Part, domains: Sequence[Domain], count: int) -> list[Row]:
    """`count` problems of each domain, taking turns, so that any first rows hold all; no demonstrations."""
    drawn = [islice(problems(domain, part, SEED + 2), count) for domain in domains]
    turns = zip(*drawn, strict=True)
    return [problem_row(d, problem) for turn in turns for d, problem in zip(domains, turn, strict=True)]


def write_parquet(part: Part, domains: Sequence[Domain], count: int, path: Path) -> None:
    table = pa.Table.from_pylist(alternating(part, domains, count))
    pq.write_table(table, path, compression="zstd", compression_level=19, use_dictionary=False)


def train(name: str) -> Path:
    """Runs a model's recipe with `gopd train`, or resumes it; returns the trained student's folder."""
    plan = MODELS[name]
    run = SCRATCH / "runs" / name
    if not (run / "student").exists():
        arguments = [str(HERE / plan.recipe), *plan.changes, f"tracking.name={name}"]
        command = [sys.executable, "-m", "gopd.cli", "train", *arguments]
        subprocess.run(command + ["--resume"] * run.exists(), cwd=ROOT, check=True)
    return run / "student"


def install(name: str, folder: Path) -> None:
    """Trains a model, casts it to bfloat16, measures what will ship, and writes its card."""
    student = train(name)
    AutoModelForCausalLM.from_pretrained(student, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(student).save_pretrained(folder)
    domains = measure(folder)
    (folder / "README.md").write_text(card(name, folder, domains), encoding="utf-8")
    print(name, *(f"{domain} {shown(figures)}" for domain, figures in domains.items()), flush=True)


def measure(folder: Path) -> Mapping[str, Figures]:
    """Samples one response per held-out problem at temperature 1 and grades it; figures per domain."""
    model = load_model(ModelSpec(model=str(folder)), "model", device=torch.device("cpu"), dtype=torch.float32)
    files = tuple(str(PACKAGE / file) for file, (part, _, _) in FILES.items() if part == "heldout")
    source = SourceSection(files=files)
    rollouts = sample_rollouts(
        TorchSampler(model, slots=128),
        model.tokenizer,
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
    plan = MODELS[name]
    recipe = load_recipe(HERE / plan.recipe, plan.changes)
    model = AutoModelForCausalLM.from_pretrained(folder)
    accuracies = "\n".join(
        f"| {domain} | {figures.problems} | {shown(figures)} |" for domain, figures in domains.items()
    )
    rates = ", ".join(f"{rate:g} ({domain})" for domain, (_, rate) in DEMONSTRATIONS.items())
    if recipe.method == "sft":
        data = f"demonstrations, each with one mistake with probability {rates}"
    else:
        data = f"prompts with {recipe.sampler.samples_per_prompt} responses each (GRPO)"
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# gopd tiny family: {name}

A {model.num_parameters():,}-parameter Qwen3-architecture model ({plan.size} size, bfloat16) for trying on-policy
distillation on a laptop. It does four things only: arithmetic and number sequences answered in `\\boxed{{}}`, and
Python functions `f(xs)` on lists and `f(s)` on strings. It is of no use for anything else.

How it was made: {plan.words};
{recipe.train.steps} steps of {recipe.train.prompts_per_step} {data};
AdamW, learning rate {recipe.optim.lr:g} ({recipe.optim.schedule} schedule), seed {recipe.train.seed}.
All data is generated.
`experiments/tiny/build.py` rebuilds it.

Accuracy on held-out problems, one sample each at temperature 1, with 95% bootstrap intervals:

| domain | problems | accuracy |
|---|---|---|
{accuracies}

Held-out problems are chosen by a hash of their canonical content and never appear in training data.
Licence: Apache-2.0.
"""


if __name__ == "__main__":
    main()
