"""The commands that are made to crash: what is typed, what is typed to go on, and what must come out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import random_model, tiny_tokenizer
from forks import Forks
from runs import Tree, held_out, lines, merged, opd_tree, outcome, sft_tree, write_recipe

OUT = "out"
"""Folder of a trial in which its command may write."""


@dataclass(frozen=True)
class Case:
    """A command. `words` gives what is typed, for a trial's folder; `again` is added to go on after a crash."""

    name: str
    words: Callable[[Path], list[str]]
    again: tuple[str, ...] = ()

    def result(self, trial: Path) -> dict[str, Any]:
        """All that the command left, but for the clock."""
        run = trial / OUT / "runs" / "run"
        if run.exists():
            return outcome(run)
        files = [p for p in (trial / OUT).rglob("*") if p.is_file()]
        return {str(p.relative_to(trial)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def make_cases(folder: Path) -> list[Case]:
    """All cases; their models, rows and recipes go to `folder`. The report is of the run in `folder`/whole/opd."""
    base, first, second = (_model(folder / f"model-{seed}", seed) for seed in range(3))
    every: Tree = {"train": {"steps": 3}, "checkpoint": {"every": 1, "keep_last": 2}}
    opd = opd_tree(
        _made(folder / "opd"),
        base,
        {"a": first, "b": second},
        **merged(every, {"checkpoint": {"keep_best": True}, "train": {"mini_batches": 2}}),
        tracking={"trackers": ["tensorboard"]},
        validation=held_out(folder / "opd", 2, ("a", "b"), teachers=True, every=2),
    )
    sft = sft_tree(_made(folder / "sft"), base, **every, validation=held_out(folder / "sft", 2))
    sft["student"]["lora"] = {"rank": 2, "dropout": 0.3}
    changes: Tree = {
        "reference": {"model": str(first)},
        "grpo": {"kl_weight": 0.5},
        "sampler": {"samples_per_prompt": 2},
        "data": {"verifier": "math"},
        "train": {"mini_batches": 2, "passes": 2},
    }
    grpo = opd_tree(_made(folder / "grpo"), base, {}, method="grpo", **merged(every, changes))
    del grpo["teachers"]
    cases = [
        _training(name, write_recipe(folder / f"{name}.yaml", tree))
        for name, tree in (("opd", opd), ("grpo", grpo), ("sft", sft))
    ]
    asked = write_recipe(folder / "generate.yaml", merged(opd, {"sampler": {"slots": 1}}))
    rows = [{"question": f"{n}+1=?", "answer": f"#### {n + 1}"} for n in range(4)]
    problems = _made(folder / "data") / "gsm8k_test.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    fixed = ["--tasks", "gsm8k", "--n", "3", "--max-tokens", "24", "--slots", "2", "--data"]
    finished = folder / "whole" / "opd"
    return [
        *cases,
        Case("generate", lambda t: ["generate", str(asked), "--to", str(t / OUT / "made")], ("--resume",)),
        Case(
            "eval", lambda t: ["eval", str(base), *fixed, str(problems.parent), "--to", str(t / OUT / "eval")]
        ),
        Case(
            "merge",
            lambda t: [
                *("merge", str(first), str(second), "--base", str(base), "--alpha", "0.5"),
                *("--to", str(t / OUT / "merged")),
            ],
        ),
        Case(
            "report",
            lambda t: [
                "report",
                str(finished / OUT / "runs" / "run"),
                "--to",
                str(t / OUT / "report" / "report.html"),
            ],
        ),
    ]


def new_trial(folder: Path) -> Path:
    """A folder for a case to run in; one that is there goes."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / OUT).mkdir(parents=True)
    return folder


def whole_checkpoints(trial: Path) -> list[int]:
    """The steps of a run's checkpoints, each read and compared with its checksums; AssertionError for damage."""
    steps = []
    for folder in sorted((trial / OUT).glob("runs/run/checkpoints/step-*")):
        expected = json.loads((folder / "checksums.json").read_text(encoding="utf-8"))
        files = {p.name for p in folder.iterdir()} - {"checksums.json"}
        assert files == expected.keys() and "weights.safetensors" in files, folder
        for name, checksum in expected.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == checksum, folder / name
        steps.append(int(folder.name.removeprefix("step-")))
    return steps


def leftovers(trial: Path) -> list[str]:
    """Temporary files and folders."""
    found = [p for p in (trial / OUT).rglob(".*") if p.name != ".lock"]
    return [str(p.relative_to(trial)) for p in found]


def assert_ends_as(case: Case, forks: Forks, trial: Path, whole: dict[str, Any]) -> None:
    """The command, typed once more after crashes, gives what it gives undisturbed."""
    log, done = trial / "last.log", (trial / OUT / "merged").exists()
    if not (case.name == "merge" and done):  # a merge that is there is whole; typed again, it is refused
        code = forks.run(*case.words(trial), *case.again, output=log)
        assert code == 0, f"{case.name}: {log.read_text()}"
    result = case.result(trial)
    if "metrics" in result:
        steps = [entry["step"] for entry in lines(trial / OUT / "runs" / "run" / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1)), f"metrics have a gap or repeat: {steps}"
    assert leftovers(trial) == []
    differ = [key for key in whole.keys() | result.keys() if whole.get(key) != result.get(key)]
    assert differ == [], f"{case.name}: differs from the undisturbed run: {differ}"


def _training(name: str, recipe: Path) -> Case:
    return Case(name, lambda t: ["train", str(recipe), f"tracking.folder={t / OUT / 'runs'}"], ("--resume",))


def _model(folder: Path, seed: int) -> Path:
    if not folder.exists():
        random_model(seed).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
