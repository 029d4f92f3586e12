"""A run that is killed, interrupted or finished, and taken up again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import MakeModel
from forks import Forks
from runs import Tree, held_out, lines, merged, opd_tree, outcome, saved_steps, sft_tree, write_recipe

KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


@pytest.fixture(scope="module")
def models(make_model: MakeModel) -> list[Path]:
    return [make_model(seed) for seed in range(3)]


def opd(folder: Path, models: list[Path], **sections: Any) -> Tree:
    """Everything that has state: two teachers, validation, mini-batches, warm-up, best checkpoints."""
    base, first, second = models
    common: Tree = {
        "validation": held_out(folder, 2, ("a", "b"), teachers=True, every=2),
        "train": {"steps": 4, "mini_batches": 2},
        "optim": {"warmup_steps": 3, "schedule": "cosine"},
        "checkpoint": {"every": 1, "keep_last": 2, "keep_best": True},
    }
    return opd_tree(folder, base, {"a": first, "b": second}, **merged(common, sections))


def sft(folder: Path, models: list[Path]) -> Tree:
    return sft_tree(
        folder,
        models[0],
        train={"steps": 4},
        checkpoint={"every": 1},
        validation=held_out(folder, 2, every=2),
    ) | {"student": {"model": str(models[0]), "lora": {"rank": 2, "dropout": 0.3}}}


def grpo(folder: Path, models: list[Path]) -> Tree:
    """Off-policy updates and a reference; the KL to it is what teaches, as no answer is right."""
    changes: Tree = {
        "reference": {"model": str(models[1])},
        "grpo": {"kl_weight": 0.5},
        "sampler": {"samples_per_prompt": 2},
        "data": {"verifier": "math"},
        "train": {"steps": 4, "mini_batches": 2, "passes": 2},
        "checkpoint": {"every": 1},
    }
    tree = opd_tree(folder, models[0], {}, method="grpo", **changes)
    del tree["teachers"]
    return tree


def run_never_killed(forks: Forks, folder: Path, tree: Tree) -> tuple[dict[str, Any], float]:
    recipe = write_recipe(folder / "whole.yaml", merged(tree, {"tracking": {"name": "whole"}}))
    started = time.perf_counter()
    assert forks.run("train", recipe, output=folder / "whole.log") == 0, (folder / "whole.log").read_text()
    return outcome(folder / "runs" / "whole"), time.perf_counter() - started


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited a minute in vain"
        time.sleep(0.002)


def hidden(run: Path) -> list[str]:
    return [str(p) for p in run.rglob(".*") if p.name != ".lock"]


def assert_ends_as(forks: Forks, folder: Path, recipe: Path, whole: dict[str, Any]) -> None:
    """The killed run, resumed to its end, is the run that was never killed."""
    log = folder / "last.log"
    assert forks.run("train", recipe, "--resume", output=log) == 0, log.read_text()
    run = folder / "runs" / "run"
    again = outcome(run)
    assert [entry["step"] for entry in again["metrics"]] == list(range(1, len(again["metrics"]) + 1))
    assert hidden(run) == []
    assert [key for key in whole.keys() | again.keys() if whole.get(key) != again.get(key)] == []


@pytest.mark.parametrize(
    ("make", "changes"), [(opd, (14, 52, 30, 38)), (sft, (14, 42, 24, 24)), (grpo, (14, 30, 24, 20))]
)
def test_killed_at_random_moments_and_before_writes_a_run_ends_bit_identical(
    forks: Forks, models: list[Path], tmp_path: Path, make: Any, changes: tuple[int, ...]
) -> None:
    tree = make(tmp_path, models)
    whole, seconds = run_never_killed(forks, tmp_path, tree)
    recipe = write_recipe(tmp_path / "run.yaml", tree)
    chance, log, run = random.Random(7), tmp_path / "log", tmp_path / "runs" / "run"
    for number, change in enumerate(changes):
        resume = ["--resume"] * bool(number)
        assert forks.run("train", recipe, *resume, output=log, die_at=change) == KILLED, log.read_text()
    assert 0 < saved_steps(run)[-1] < 4, "the kills fell before the first checkpoint or after the last"
    for _ in range(3):
        forks.kill_after(chance.uniform(0.05, 0.4) * seconds, "train", recipe, "--resume", output=log)
    assert_ends_as(forks, tmp_path, recipe, whole)


def test_killed_during_the_export_or_just_before_it_a_run_ends_bit_identical(
    forks: Forks, models: list[Path], tmp_path: Path
) -> None:
    tree = merged(opd(tmp_path, models), {"train": {"steps": 1}, "student": {"lora": {"rank": 2}}})
    whole, _ = run_never_killed(forks, tmp_path, tree)
    recipe, run = write_recipe(tmp_path / "run.yaml", tree), tmp_path / "runs" / "run"
    assert forks.run("train", recipe, output=tmp_path / "log") == 0
    shutil.rmtree(run / "student")  # as if killed between the last checkpoint and the export
    stages = []
    for change in range(1, 100, 2):
        if forks.run("train", recipe, "--resume", output=tmp_path / "log", die_at=change) == 0:
            break
        stages.append((run / ".student.tmp").exists())
    assert any(stages), "no kill fell into the export"
    assert_ends_as(forks, tmp_path, recipe, whole)


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(
    forks: Forks, models: list[Path], tmp_path: Path
) -> None:
    tree = merged(
        opd(tmp_path, models),
        {"checkpoint": {"every": 0, "keep_best": False, "keep_last": 1}, "train": {"steps": 12}},
    )
    whole, _ = run_never_killed(forks, tmp_path, tree)
    recipe, log, run = write_recipe(tmp_path / "run.yaml", tree), tmp_path / "log", tmp_path / "runs" / "run"
    pid = forks.start("train", recipe, output=log)
    wait_for((run / "metrics.jsonl").exists)
    os.kill(pid, signal.SIGINT)
    assert forks.wait() == 130
    (step,) = saved_steps(run)
    assert [entry["step"] for entry in lines(run / "metrics.jsonl")] == list(range(1, step + 1))
    assert step < 12 and not (run / "student").exists() and hidden(run) == []
    text = log.read_text()
    assert f"stopped after step {step} of 12" in text and "Traceback" not in text
    assert f"gopd train {recipe} --resume" in text
    assert_ends_as(forks, tmp_path, recipe, whole)


def test_a_second_ctrl_c_stops_at_once_and_the_run_goes_on_from_its_checkpoint(
    forks: Forks, models: list[Path], tmp_path: Path
) -> None:
    tree = merged(opd(tmp_path, models), {"train": {"steps": 2}})
    whole, _ = run_never_killed(forks, tmp_path, tree)
    recipe, log, run = write_recipe(tmp_path / "run.yaml", tree), tmp_path / "log", tmp_path / "runs" / "run"
    pid = forks.start("train", recipe, output=log)
    wait_for((run / "validation.jsonl").exists)
    os.kill(pid, signal.SIGINT)
    wait_for(lambda: "Ctrl-C again" in log.read_text())
    os.kill(pid, signal.SIGINT)
    assert forks.wait() == 130
    text = log.read_text()
    assert "Traceback" not in text and "--resume" in text and "stopped after step" not in text
    assert hidden(run) == []
    assert_ends_as(forks, tmp_path, recipe, whole)


def test_resuming_a_finished_run_says_so_and_leaves_everything(
    forks: Forks, models: list[Path], tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "run.yaml", opd_tree(tmp_path, models[0], {"a": models[1]}, train={"steps": 1})
    )
    assert forks.run("train", recipe, output=tmp_path / "first") == 0
    run = tmp_path / "runs" / "run"
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.rglob("*") if p.is_file()}
    assert forks.run("train", recipe, "--resume", output=tmp_path / "second") == 0
    assert "this run is finished" in (tmp_path / "second").read_text()
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in run.rglob("*") if p.is_file()} == before


def test_the_same_recipe_twice_is_the_same_run_and_another_seed_is_not(
    forks: Forks, models: list[Path], tmp_path: Path
) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1]})
    whole, _ = run_never_killed(forks, tmp_path, tree)
    recipe = write_recipe(tmp_path / "run.yaml", tree)
    assert_ends_as(forks, tmp_path, recipe, whole)
    other = write_recipe(
        tmp_path / "other.yaml", merged(tree, {"tracking": {"name": "other"}, "train": {"seed": 1}})
    )
    assert forks.run("train", other, output=tmp_path / "other.log") == 0
    assert outcome(tmp_path / "runs" / "other")["metrics"] != whole["metrics"]
