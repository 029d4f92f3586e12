"""A recipe on a CPU gives the same bytes wherever and whenever it runs, and nearly the same with other threads.

Two fresh processes run every recipe, in other folders and with other hash seeds. What differs first is named.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from conftest import MakeModel
from runs import (
    Tree,
    held_out,
    lines,
    merged,
    opd_tree,
    repeatable,
    sft_tree,
    student_weights,
    write_recipe,
    write_rows,
)

APART = ("metrics.jsonl", "validation.jsonl", ".lock")
"""Files that are not compared byte by byte: the first two hold seconds."""
ROOT = Path(__file__).resolve().parent.parent
PROGRAM = (
    "import sys; from gopd.cli import main; sys.exit(any([main(['train', path]) for path in sys.argv[1:]]))"
)


# --- what differs first ---------------------------------------------------------------------------------------------


def first_difference(one: Path, other: Path) -> str | None:
    """The first thing in which two run folders differ, in the order in which a run makes them; None: they are equal."""
    return next(_differences(one, other), None)


def _differences(one: Path, other: Path) -> Iterator[str]:
    for name in ("rollouts", "metrics.jsonl", "validation.jsonl", "validation", "checkpoints", "student", ""):
        yield from _in_lines(one, other, name) if name.endswith("l") else _in_files(one / name, other / name)


def _in_lines(one: Path, other: Path, name: str) -> Iterator[str]:
    first, second = (
        [repeatable(e) for e in lines(f / name)] if (f / name).exists() else [] for f in (one, other)
    )
    for a, b in zip(first, second, strict=False):
        for key in sorted(a.keys() | b.keys()):
            if a.get(key) != b.get(key):
                yield f"{name}: step {a['step']}, {key}: {a.get(key)!r} and {b.get(key)!r}"
    if len(first) != len(second):
        yield f"{name}: {len(first)} and {len(second)} entries"


def _in_files(one: Path, other: Path) -> Iterator[str]:
    names = [{str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()} for f in (one, other)]
    if missing := sorted(names[0] ^ names[1]):
        yield f"{one.name}/{missing[0]}: in one of the runs only"
    for name in sorted(names[0] & names[1]):
        first, second = one / name, other / name
        if Path(name).name not in APART and first.read_bytes() != second.read_bytes():
            yield f"{one.name}/{name}: {_inside(first, second)}"


def _inside(first: Path, second: Path) -> str:
    if first.suffix == ".safetensors":
        one, other = load_file(first), load_file(second)
        for key in sorted(one.keys() & other.keys()):
            if not torch.equal(one[key], other[key]):
                apart = (one[key].double() - other[key].double()).abs()
                return f"tensor {key}, {int((apart > 0).sum())} of {apart.numel()} numbers, by up to {apart.max():.3g}"
    if first.suffix == ".parquet":
        rows = [pq.read_table(path).to_pylist() for path in (first, second)]
        for number, (a, b) in enumerate(zip(*rows, strict=False)):
            for key in a:
                if repr(a[key]) != repr(b[key]):
                    return f"row {number}, column {key}: {str(a[key])[:80]} and {str(b[key])[:80]}"
    return "other bytes"


# --- runs -----------------------------------------------------------------------------------------------------------


def trees(folder: Path, models: list[Path]) -> dict[str, Tree]:
    """A recipe of each kind, by name. Run folders are relative to where the run is started."""
    base, first, second = models
    teachers = {"a": first, "b": second}
    common: Tree = {
        "train": {"steps": 2},
        "validation": held_out(folder, 2, ("a", "b"), teachers=True, every=1),
        "checkpoint": {"every": 1},
    }
    lora: Tree = {"student": {"lora": {"rank": 2, "dropout": 0.3}}}
    write_rows(folder / "train.jsonl", 12, ("a", "b"))
    grpo = opd_tree(folder, base, {}, **merged(common, {"train": {"mini_batches": 2, "passes": 2}}))
    grpo |= {"method": "grpo", "reference": {"model": str(first)}, "grpo": {"kl_weight": 0.5}}
    grpo["data"]["verifier"] = "math"
    grpo["sampler"] = {"samples_per_prompt": 2}
    del grpo["teachers"], grpo["validation"]["teachers"]
    made = {
        "sampled": opd_tree(folder, base, teachers, **common, objective={"control_variate": True}),
        "topk": opd_tree(folder, base, teachers, **common, objective={"estimator": "topk", "top_k": 8}),
        "full": opd_tree(folder, base, teachers, **common, objective={"estimator": "full"}),
        "minibatches": opd_tree(folder, base, teachers, **merged(common, {"train": {"mini_batches": 2}})),
        "opd-lora": opd_tree(folder, base, teachers, **merged(common, lora)),
        "sft-lora": merged(sft_tree(folder, base, train={"steps": 2}), lora),
        "grpo": grpo,
    }
    return {name: merged(tree, {"tracking": {"folder": "runs", "name": name}}) for name, tree in made.items()}


NAMES = ("sampled", "topk", "full", "minibatches", "opd-lora", "sft-lora", "grpo")


def run_all(folder: Path, recipes: list[Path], *, hash_seed: int, threads: int) -> Path:
    """Runs recipes one after another in a fresh process that starts in `folder`; returns the folder of the runs."""
    folder.mkdir(parents=True)
    changed = {
        "PYTHONHASHSEED": str(hash_seed),
        "OMP_NUM_THREADS": str(threads),
        "COLUMNS": str(80 + hash_seed),
    }
    command = [sys.executable, "-c", PROGRAM, *map(str, recipes)]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | changed, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs"


@pytest.fixture(scope="module")
def twice(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("determinism")
    made = trees(folder, [make_model(seed) for seed in range(3)])
    recipes = [write_recipe(folder / f"{name}.yaml", made[name]) for name in NAMES]
    one = run_all(folder / "here", recipes, hash_seed=1, threads=1)
    return one, run_all(folder / "else" / "where", recipes[::-1], hash_seed=2, threads=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_in_two_processes_gives_the_same_bytes(name: str, twice: tuple[Path, Path]) -> None:
    one, other = (runs / name for runs in twice)
    assert len(lines(one / "metrics.jsonl")) >= 2 and (one / "student" / "README.md").exists()
    assert (difference := first_difference(one, other)) is None, difference


def test_a_difference_is_named(twice: tuple[Path, Path], tmp_path: Path) -> None:
    whole, copy = twice[0] / "full", tmp_path / "full"

    def named(change: Any) -> str | None:
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(whole, copy)
        change()
        return first_difference(whole, copy)

    def nudge() -> None:
        path = next((copy / "student").glob("*.safetensors"))
        tensors = load_file(path)
        tensors["model.norm.weight"][3] += 1
        save_file(tensors, path, metadata={"format": "pt"})

    def reword() -> None:
        path = copy / "rollouts" / "step-00000002.parquet"
        table = pq.read_table(path)
        at = table.column_names.index("response")
        pq.write_table(table.set_column(at, "response", [["other"] * len(table)]), path)

    def remeasure() -> None:
        path = copy / "metrics.jsonl"
        path.write_text(path.read_text().replace('"loss": ', '"loss": 1'))

    assert named(lambda: None) is None
    assert "tensor model.norm.weight, 1 of 32 numbers, by up to 1" in (named(nudge) or "")
    assert "rollouts/step-00000002.parquet: row 0, column response" in (named(reword) or "")
    assert "metrics.jsonl: step 1, loss: " in (named(remeasure) or "")
    assert "student/README.md: in one" in (named(lambda: (copy / "student" / "README.md").unlink()) or "")


@pytest.mark.nightly
def test_with_vllm_two_processes_give_the_same_bytes_too(make_model: MakeModel, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    models = [make_model(seed, head_dim=32) for seed in range(3)]
    tree = merged(trees(tmp_path, models)["sampled"], {"sampler": {"engine": "vllm"}})
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    one, other = (
        run_all(tmp_path / str(seed), [recipe], hash_seed=seed, threads=1) / "sampled" for seed in (1, 2)
    )
    assert (difference := first_difference(one, other)) is None, difference


@pytest.mark.nightly
def test_two_threads_give_nearly_the_same(tmp_path: Path) -> None:
    """`docs/reliability.md` states the tolerance."""
    tree = yaml.safe_load((ROOT / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    changes: Tree = {
        "train": {"steps": 4, "prompts_per_step": 32},
        "tracking": {"name": "run", "folder": "runs"},
    }
    del tree["validation"]
    recipe = write_recipe(tmp_path / "recipe.yaml", merged(tree, changes))
    one, other = (
        run_all(tmp_path / str(threads), [recipe], hash_seed=1, threads=threads) / "run" for threads in (1, 2)
    )
    weights = [student_weights(run) for run in (one, other)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=1e-5, msg=name)
    for a, b in zip(lines(one / "metrics.jsonl"), lines(other / "metrics.jsonl"), strict=True):
        assert repeatable(b) == pytest.approx(repeatable(a), rel=1e-5, abs=1e-9), f"step {a['step']}"
