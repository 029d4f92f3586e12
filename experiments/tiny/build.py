"""Rebuilds the tiny family: `python experiments/tiny/build.py`, from anywhere, no arguments.

Data, tokenizer and random starts are made first, then `gopd train` runs the recipes beside this file in
order, and each trained student is cast to bfloat16, measured on the held-out problems and installed into the
package with its model card. A finished stage is not redone; delete `work/` to start over.
"""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from models import make_tokenizer, save_initial
from problems import Domain, Part, Row, rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from gopd.recipe import SftRecipe, load_recipe
from gopd.verify import grade_all, verifier_for

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = HERE / "work"
PACKAGE = ROOT / "src" / "gopd" / "tiny"

SEED = 0
MISTAKE_RATE = 0.5
DEMONSTRATIONS: dict[str, dict[Domain, int]] = {
    "mixed": {"arithmetic": 40_000, "lists": 10_000},
    "math": {"arithmetic": 8_000},
    "code": {"lists": 8_000},
}
TRAIN_PROMPTS, HELD_OUT_PROMPTS = 2_000, 500  # per domain
ABOUT = {
    "base": ("small", "mixed-quality demonstrations of both domains"),
    "math": ("small", "error-free arithmetic demonstrations, starting from `base`"),
    "code": ("small", "error-free list-function demonstrations, starting from `base`"),
    "large-base": ("large", "mixed-quality demonstrations of both domains"),
    "large-math": ("large", "error-free arithmetic demonstrations, starting from `large-base`"),
}


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of right answers, with its 95% Wilson interval."""

    right: int
    total: int
    low: float
    high: float

    @classmethod
    def of(cls, right: int, total: int) -> Accuracy:
        """Accuracy of `right` answers out of `total` > 0."""
        z = 1.959964
        share, spread = right / total, z * z / total
        middle = (share + spread / 2) / (1 + spread)
        half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
        return cls(right, total, middle - half, middle + half)

    def __str__(self) -> str:
        return f"{100 * self.right / self.total:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def main() -> None:
    WORK.mkdir(exist_ok=True)
    PACKAGE.mkdir(exist_ok=True)
    for name in DEMONSTRATIONS:
        once(WORK / f"{name}.jsonl", lambda path, name=name: write_demonstrations(path, name))
    once(PACKAGE / "train.parquet", lambda path: write_parquet(path, alternating("train", TRAIN_PROMPTS)))
    once(
        PACKAGE / "heldout.parquet",
        lambda path: write_parquet(path, alternating("heldout", HELD_OUT_PROMPTS)),
    )
    tokenizer = make_tokenizer(SEED)
    for shape in ("small", "large"):
        once(WORK / f"initial-{shape}", lambda path, shape=shape: save_initial(path, shape, tokenizer, SEED))
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
    rate = MISTAKE_RATE if name == "mixed" else 0.0
    seed = SEED if name == "mixed" else SEED + 1
    found = [
        row
        for domain, count in DEMONSTRATIONS[name].items()
        for row in rows(domain, "train", count, seed=seed, mistake_rate=rate)
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
        held_out = pq.read_table(PACKAGE / "heldout.parquet").to_pylist()
        scores = {
            domain: measure(path, [row for row in held_out if row["data_source"] == f"tiny/{domain}"])
            for domain in ("arithmetic", "lists")
        }
        (WORK / f"measured-{name}.json").write_text(
            json.dumps({d: asdict(a) for d, a in scores.items()}) + "\n"
        )
        (path / "README.md").write_text(card(name, path, scores), encoding="utf-8")
        print(name, *(f"{domain} {accuracy}" for domain, accuracy in scores.items()), flush=True)

    once(folder, make)


@torch.no_grad()
def measure(model_folder: Path, held_out: list[Row], batch: int = 250, max_new_tokens: int = 48) -> Accuracy:
    """Samples one response per problem at temperature 1 (seeded) and grades it."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    torch.manual_seed(SEED)
    right = 0
    for start in range(0, len(held_out), batch):
        found = held_out[start : start + batch]
        inputs = tokenizer.apply_chat_template(
            [row["prompt"] for row in found],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        ids = model.generate(
            **inputs, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens
        )
        texts = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        graded = grade_all(
            [
                (verifier_for(row["data_source"]), row["reward_model"]["ground_truth"], text)
                for row, text in zip(found, texts, strict=True)
            ]
        )
        right += graded.count(1.0)
    return Accuracy.of(right, len(held_out))


def card(name: str, folder: Path, scores: dict[str, Accuracy]) -> str:
    shape, data = ABOUT[name]
    recipe = load_recipe(HERE / f"{name}.yaml")
    assert isinstance(recipe, SftRecipe)
    model = AutoModelForCausalLM.from_pretrained(folder)
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
,each demonstration makes one mistake with probability {MISTAKE_RATE:g}.
`experiments/tiny/build.py` rebuilds it.

Accuracy on {scores["arithmetic"].total} + {scores["lists"].total} held-out problems, one sample each
at temperature 1, with 95% Wilson intervals:

| domain | accuracy |
|---|---|
| arithmetic | {scores["arithmetic"]} |
| lists | {scores["lists"]} |

Held-out problems are chosen by a hash of their canonical content and never appear in training data.
Licence: Apache-2.0.
"""


if __name__ == "__main__":
    main()
