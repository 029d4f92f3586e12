"""Metrics survive kills byte for byte; rollouts and trackers are read back by their own readers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from gopd.checkpoint import RunFolder
from gopd.errors import BadInput, RunFailed
from gopd.recipe import Recipe
from gopd.recipe_file import parse_recipe, resolved_yaml
from gopd.tracking import (
    Metrics,
    Trackers,
    read_metrics,
    rewind_rollouts,
    rollouts_file,
    write_rollouts,
)
from gopd.types import Prompt, Rollout, Scores, TokenReport


def recipe_in(folder: Path, *trackers: str) -> Recipe:
    return parse_recipe(
        {
            "student": {"model": "s"},
            "teachers": {"math": {"model": "t"}},
            "data": {"files": ["rows.jsonl"]},
            "train": {"steps": 100},
            "tracking": {"folder": str(folder), "name": "run", "trackers": list(trackers)},
        }
    )


def test_metrics_are_valid_json_whatever_the_numbers(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics.append({"step": 1, "loss": 0.1, "lr": 1e-5, "kl": float("nan"), "per": {"a": [float("inf"), 2]}})
    (line,) = metrics.path.read_text().splitlines()

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    entry = json.loads(line, parse_constant=refuse)
    assert entry == {"step": 1, "loss": 0.1, "lr": 1e-5, "kl": None, "per": {"a": [None, 2]}}
    assert read_metrics(metrics.path) == [entry]


def test_rewind_drops_later_steps_and_a_torn_line_and_keeps_bytes(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m.jsonl")
    for step in range(4):
        metrics.append({"step": step, "loss": step / 7})
    whole = metrics.path.read_bytes()
    for cut in range(len(whole) - 20, len(whole)):  # killed while writing the last line, at every byte
        metrics.path.write_bytes(whole[:cut])
        assert [entry["step"] for entry in read_metrics(metrics.path)] == [0, 1, 2]
        metrics.rewind(3)
        metrics.append({"step": 3, "loss": 3 / 7})
        assert metrics.path.read_bytes() == whole
    metrics.rewind(1)
    assert metrics.path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    metrics.rewind(-1)
    assert metrics.path.read_bytes() == b""


def test_rewind_of_no_file_makes_none(tmp_path: Path) -> None:
    Metrics(tmp_path / "m.jsonl").rewind(5)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_line_before_the_last_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(BadInput, match=r"m\.jsonl:2: "):
        Metrics(path).rewind(9)
    assert path.read_text().count("\n") == 3


def test_metrics_that_cannot_be_written_fail_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFailed, match=r"file/m\.jsonl: Not a directory"):
        Metrics(tmp_path / "file" / "m.jsonl").append({"step": 1})


def rollout(ids: list[int], *, route: str | None, logprobs: list[float] | None) -> Rollout:
    prompt = Prompt(
        index=17,
        where="train.jsonl:18",
        messages=(
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "reply"},
            {"role": "user", "content": "what is 2·3? 🙂"},
        ),
        data_source="gsm8k",
        verifier="math",
        ground_truth="6",
        route=route,
        response=None,
        fields={},
    )
    return Rollout(
        prompt, 2, [1, 2], ids, None if logprobs is None else torch.tensor(logprobs), True, "six", reward=1.0
    )


def test_rollouts_come_back_from_parquet_as_they_were(tmp_path: Path) -> None:
    teacher, advantages = torch.tensor([-0.1, -2.5, -1e-7]), torch.tensor([0.3, float("-inf"), 1e-30])
    scores = Scores("math", 1.0, teacher)
    extrapolated = Scores("code", 1.25, torch.tensor([-1.0]), torch.tensor([-2.0]), torch.tensor([0.5]))
    own, entropies = torch.tensor([-0.5, -1.25, -3.0]), torch.tensor([0.25, 0.0, 2.0])
    one = torch.tensor([1.5])
    rollouts = [
        rollout([5, 7, 0], route=None, logprobs=[-0.5, -1.25, -3.0]),
        rollout([4], route="code", logprobs=[-0.25]),
        rollout([9], route="code", logprobs=None),
    ]
    path = rollouts_file(tmp_path, 12)
    write_rollouts(
        path,
        12,
        rollouts,
        [
            TokenReport(own, advantages, entropies, None, None, scores),
            TokenReport(one, one, one, None, one, extrapolated),
            None,
        ],
        lambda ids: [f"<{i}>" for i in ids],
        versions=[[(1, 9), (2, 10)], [(1, 10)], []],
    )
    sampled, other, demonstration = pq.read_table(path).to_pylist()
    assert sampled == {
        "step": 12,
        "row": 17,
        "where": "train.jsonl:18",
        "sample": 2,
        "route": "math",
        "data_source": "gsm8k",
        "prompt": "what is 2·3? 🙂",
        "response": "six",
        "reward": 1.0,
        "finished": True,
        "response_ids": [5, 7, 0],
        "tokens": ["<5>", "<7>", "<0>"],
        "versions": [9, 10, 10],
        "sampler_logprobs": [-0.5, -1.25, -3.0],
        "student_logprobs": own.tolist(),
        "teacher_logprobs": teacher.tolist(),
        "reference_logprobs": None,
        "log_partition": None,
        "advantages": advantages.tolist(),
        "entropies": entropies.tolist(),
        "kls": None,
    }
    assert (other["teacher_logprobs"], other["reference_logprobs"]) == ([-1.0], [-2.0])
    assert (other["log_partition"], other["kls"]) == ([0.5], [1.5])
    assert demonstration["route"] == "code"
    assert demonstration["response_ids"] == [9]
    for column in ("sampler_logprobs", "teacher_logprobs", "advantages"):
        assert demonstration[column] is None


def test_rewind_removes_rollouts_of_later_steps_only(tmp_path: Path) -> None:
    for step in (1, 9, 10, 11):
        write_rollouts(rollouts_file(tmp_path, step), step, [], [], lambda ids: [])
    rewind_rollouts(tmp_path, 9)
    assert sorted(tmp_path.iterdir()) == [rollouts_file(tmp_path, 1), rollouts_file(tmp_path, 9)]


def test_a_tracker_that_is_not_installed_is_bad_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_in(tmp_path, "tensorboard", "trackio")
    run = RunFolder.open(recipe, resume=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "trackio" else object())
    with pytest.raises(BadInput, match=r"tracking\.trackers: trackio.*pip install gopd\[trackio\]"):
        Trackers(recipe, run)
    assert not run.tensorboard.exists()


def test_tensorboard_reads_back_one_value_per_step_after_a_resume(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, name = recipe_in(tmp_path, "tensorboard"), "teacher/math/advantage_mean"
    killed = Trackers(recipe, RunFolder.open(recipe, resume=False))
    for step in range(6):
        killed.log(step, {name: step / 2, "loss": 1.0})
    on_disk = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert len(on_disk.Scalars("loss")) == 6, "a kill would lose steps"
    run = RunFolder.open(recipe, resume=True)
    resumed = Trackers(recipe, run, after=3)
    for step in range(4, 8):
        resumed.log(step, {name: step / 2, "loss": 1.0})
    resumed.close()
    killed.close()
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", name]
    assert [(event.step, event.value) for event in events.Scalars(name)] == [(s, s / 2) for s in range(8)]


def run_trackers(
    recipe: Recipe, folder: Path, times: int, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Logs three steps, so many times, in another process: these start threads and redirect the output."""
    script = """
import sys, time
from gopd.checkpoint import RunFolder
from gopd.errors import BadInput
from gopd.recipe_file import load_recipe
from gopd.tracking import Trackers

recipe = load_recipe(sys.argv[1])
for times in range(int(sys.argv[2])):
    run = RunFolder.open(recipe, resume=True)
    try:
        trackers = Trackers(recipe, run)
    except BadInput as error:
        print(error)
        sys.exit(2)
    for step in range(3):
        trackers.log(step, {"teacher/math/advantage_mean": step / 2})
    trackers.close()
    time.sleep(1.1)  # offline W&B runs are told apart by the second
"""
    (folder / "r.yaml").write_text(resolved_yaml(recipe))
    return subprocess.run(
        [sys.executable, "-c", script, str(folder / "r.yaml"), str(times)],
        env={**os.environ, "HOME": str(folder), **environment},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline_writes_a_run_and_a_resume_keeps_its_id(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, "wandb")
    key = "canary0" + "0" * 33
    done = run_trackers(recipe, tmp_path, 2, WANDB_MODE="offline", WANDB_API_KEY=key, HF_TOKEN=key[::-1])
    assert done.returncode == 0, done.stderr
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(key.encode() in content or key[::-1].encode() in content for content in written)
    files = sorted((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.name for file in files}) == 1
    assert (tmp_path / "run" / "tracker-id").read_text() in files[0].name
    assert b"teacher/math/advantage_mean" in files[0].read_bytes()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_without_an_account_is_bad_input(tmp_path: Path) -> None:
    done = run_trackers(recipe_in(tmp_path, "wandb"), tmp_path, 1, WANDB_MODE="online", WANDB_API_KEY="")
    assert done.returncode == 2, done.stderr
    assert "tracking.trackers: wandb does not start" in done.stdout


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_writes_a_run_without_network(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    done = run_trackers(recipe_in(tmp_path, "trackio"), tmp_path, 1, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(tmp_path / "trackio" / "gopd.db")) as database:
        rows = database.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step, json.loads(metrics)) for name, step, metrics in rows] == [
        ("run", step, {"teacher/math/advantage_mean": step / 2}) for step in range(3)
    ]
