"""Whole runs for the tests: rows, recipes and what a run left behind."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from safetensors.torch import load_file
from torch import Tensor

Tree = dict[str, Any]
NOT_REPEATABLE = ("seconds/", "tokens_per_second/", "memory/")
"""Metrics that measure the machine and differ between equal runs."""


def write_rows(path: Path, count: int, routes: tuple[str, ...] = (), **fields: Any) -> Path:
    """JSONL in the published schema: sums, the teachers taking turns."""
    rows = []
    for i in range(count):
        row: Tree = {
            "data_source": "sums" if i % 2 == 0 else "more sums",
            "prompt": [{"role": "user", "content": f"{i}+{i % 7}="}],
            "reward_model": {"ground_truth": str(i + i % 7)},
            "response": f"{i + i % 7}." + "x" * (i % 3),
        }
        if routes:
            row["extra_info"] = {"opd_teacher": routes[i % len(routes)]}
        rows.append(row | fields)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def opd_tree(folder: Path, student: Path, teachers: dict[str, Path], /, **sections: Any) -> Tree:
    """A small OPD recipe: three steps of four prompts, six tokens each; `sections` change it."""
    data = folder / "train.jsonl"
    if not data.exists():
        write_rows(data, 12, tuple(teachers))
    tree: Tree = {
        "student": {"model": str(student)},
        "teachers": {name: {"model": str(model)} for name, model in teachers.items()},
        "data": {"files": [str(data)], "verifier": "none", "max_response_tokens": 6, "max_prompt_tokens": 64},
        "optim": {"lr": 1e-3},
        "train": {"steps": 3, "prompts_per_step": 4, "tokens_per_micro_batch": 128, "device": "cpu"},
        "tracking": {"folder": str(folder / "runs"), "name": "run"},
    }
    return merged(tree, sections)


def sft_tree(folder: Path, student: Path, /, **sections: Any) -> Tree:
    """The same rows as demonstrations."""
    tree = opd_tree(folder, student, {}, method="sft", **sections)
    del tree["teachers"]
    return tree


def held_out(folder: Path, count: int = 4, routes: tuple[str, ...] = (), **keys: Any) -> Tree:
    """A validation section."""
    files = [str(write_rows(folder / "heldout.jsonl", count, routes))]
    return {"files": files, "verifier": "none", "every": 2, **keys}


def merged(tree: Tree, changes: Tree) -> Tree:
    out = copy.deepcopy(tree)
    for key, value in changes.items():
        inner = out.get(key)
        out[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return out


def write_recipe(path: Path, tree: Tree) -> Path:
    path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return path


def lines(path: Path) -> list[Tree]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def repeatable(entry: Tree) -> Tree:
    return {key: value for key, value in entry.items() if not key.startswith(NOT_REPEATABLE)}


def rollouts(run: Path, step: int) -> list[Tree]:
    found: list[Tree] = pq.read_table(run / "rollouts" / f"step-{step:08d}.parquet").to_pylist()
    return found


def saved_steps(run: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in (run / "checkpoints").glob("step-*"))


def student_weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "student" / "model.safetensors")


def outcome(run: Path) -> Tree:
    """All that a run says, but for the clock, the memory and trackers: equal outcomes are bit-identical runs."""
    files = sorted(p for p in run.rglob("*") if p.is_file())
    results: Tree = {
        "metrics": [repeatable(entry) for entry in lines(run / "metrics.jsonl")],
        "files": [str(p.relative_to(run)) for p in files if p.parent.name != "tensorboard"],
    }
    for path in files:
        if path.suffix in (".safetensors", ".parquet") or path.name in ("validation.jsonl", "state.json"):
            results[str(path.relative_to(run))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return results


def start(recipe: Path, *arguments: str, limit: int | None = None) -> subprocess.Popen[str]:
    """`gopd train` in a process of its own; `limit` is the largest file it may write, in bytes."""

    def limited() -> None:
        import resource

        assert limit is not None
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "gopd.cli", "train", str(recipe), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=limited if limit is not None else None,
    )


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
