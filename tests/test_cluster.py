"""Runs on Ray: the same results as in one process, whatever is killed; two nodes; sampling ahead; what cannot work."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import gopd
from conftest import MakeModel
from gopd.cluster.actors import Place, TeacherEngine
from gopd.errors import BadInput
from gopd.recipe import GrpoRecipe
from gopd.recipe_file import parse_recipe
from gopd.types import Prompt, Rollout, Scores
from runs import (
    Tree,
    held_out,
    lines,
    merged,
    opd_tree,
    outcome,
    repeatable,
    rollouts,
    student_weights,
    write_recipe,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments" / "cluster"))
from hosts import PORT, two_nodes
from processes import TRAIN, Run, kill


@pytest.fixture(scope="module")
def models(make_model: MakeModel) -> list[Path]:
    """Large enough heads for vLLM's kernels."""
    return [make_model(seed, head_dim=32) for seed in range(3)]


def tree_of(folder: Path, models: list[Path], **sections: Any) -> Tree:
    """Two teachers, validation of all, two learner ranks, two engines."""
    base, first, second = models
    common: Tree = {
        "validation": held_out(folder, 4, ("a", "b"), teachers=True, every=3),
        "train": {"steps": 6, "prompts_per_step": 8, "mini_batches": 2},
        "checkpoint": {"every": 1, "keep_last": 2},
        "guard": {
            "action": "skip",
            "grad_norm": 50,
            "kl": 50,
        },  # nothing passes these, and all ranks must agree
        "cluster": {"learner_ranks": 2, "sampler_replicas": 2, "heartbeat": 8},
    }
    return opd_tree(folder, base, {"a": first, "b": second}, **merged(common, sections))


def start(folder: Path, tree: Tree) -> closing[Run]:
    return closing(
        Run(folder / "output.txt", write_recipe(folder / "recipe.yaml", tree), "--cluster", "local")
    )


@pytest.fixture(scope="module")
def undisturbed(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the cluster that nothing happened to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with start(folder, tree_of(folder, models)) as run:
        run.finish()
    return folder / "runs" / "run"


def assert_alike(run: Path, other: Path, tolerance: float = 1e-4) -> None:
    """The same figures, but for rounding."""
    for name in ("metrics.jsonl", "validation.jsonl"):
        for mine, theirs in zip(lines(run / name), lines(other / name), strict=True):
            near(repeatable(mine), repeatable(theirs), tolerance)
    weights, expected = student_weights(run), student_weights(other)
    assert weights.keys() == expected.keys()
    for key, weight in expected.items():
        assert float((weights[key] - weight).abs().max()) < 0.1 * 1e-3, "a tenth of one step of AdamW"


def told(row: Tree) -> list[tuple[float, float]]:
    """What trainer and sampler said of the tokens of a kept rollout."""
    return list(zip(row["student_logprobs"], row["sampler_logprobs"], strict=True))


def near(mine: Any, theirs: Any, tolerance: float) -> None:
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys()
        for key in theirs:
            near(mine[key], theirs[key], tolerance)
    elif isinstance(theirs, str | None):
        assert mine == theirs
    else:
        assert mine == pytest.approx(theirs, rel=tolerance, abs=tolerance)


def test_a_cluster_gives_what_one_process_gives(
    undisturbed: Path, models: list[Path], tmp_path: Path
) -> None:
    assert_alike(undisturbed, gopd.train(parse_recipe(tree_of(tmp_path, models))))


@pytest.mark.nightly
def test_killed_and_hung_processes_change_nothing(
    undisturbed: Path, models: list[Path], tmp_path: Path
) -> None:
    """An engine and a rank are killed, a scorer stops answering, the driver is killed: the same weights to the bit."""
    with start(tmp_path, tree_of(tmp_path, models)) as run:
        run.wait_for("step 1/6")
        kill(run.processes("ray::SamplingEngine")[0])
        kill(run.processes("ray::TeacherEngine")[0], signal.SIGSTOP)
        run.wait_for("step 3/6")
        kill(run.processes("ray::LearnerRank")[1])
        run.wait_for("starting again from the last checkpoint")
        run.wait_for("resuming after step")
        run.wait_for("step 5/6")
        assert run.driver is not None
        kill(run.driver)
        said = run.finish()
    assert "the driver was killed (SIGKILL)" in said and said.count("resuming after step") == 2
    assert "sampler" in said and "another takes its place" in said and "scorer of" in said
    found, expected = outcome(tmp_path / "runs" / "run"), outcome(undisturbed)
    for kind in ("metrics", "validation.jsonl", "student/model.safetensors"):
        assert found[kind] == expected[kind]


def test_two_nodes_train_across(models: list[Path], tmp_path: Path) -> None:
    """Hidden states and weights travel between hosts; each has room for only half of the actors."""
    sections: Tree = {"objective": {"estimator": "full"}, "train": {"steps": 2}, "validation": {"every": 1}}
    tree = tree_of(tmp_path, models, **sections)
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    with two_nodes(3) as (head, _), (tmp_path / "output.txt").open("w") as output:
        process = head.start(
            *TRAIN, recipe, "--cluster", f"{head.address}:{PORT}", stdout=output, stderr=subprocess.STDOUT
        )
        code = process.wait(200)
    assert code == 0, (tmp_path / "output.txt").read_text()
    alone = merged(tree, {"tracking": {"name": "alone"}})
    assert_alike(tmp_path / "runs" / "run", gopd.train(parse_recipe(alone)))


@pytest.mark.nightly
def test_sampling_ahead_with_updates_in_flight(models: list[Path], tmp_path: Path) -> None:
    """Staleness stays in its bounds, every token says which weights drew it, and the correction sees it."""
    sections: Tree = {
        "sampler": {"engine": "vllm", "vllm": {"in_flight_updates": True, "max_sequences": 4}},
        "data": {"max_response_tokens": 192},
        "train": {"max_staleness": 1, "steps": 4, "mini_batches": 1},
        "validation": {"teachers": False},
        "cluster": {"learner_ranks": 1, "sampler_replicas": 1},
    }
    with start(tmp_path, tree_of(tmp_path, models, **sections)) as run:
        run.finish()
    folder = tmp_path / "runs" / "run"
    entries, mixed = lines(folder / "metrics.jsonl"), 0
    for entry in entries:
        step, rows = entry["step"], rollouts(folder, entry["step"])
        for row in rows:
            versions = row["versions"]
            assert versions == sorted(versions) and len(versions) == len(row["response_ids"])
            assert max(0, step - 2) <= versions[0] and versions[-1] <= step - 1
            mixed += len(set(versions)) > 1
        carried = [version for row in rows for version in row["versions"]]
        assert entry["staleness"] == pytest.approx(step - 1 - sum(carried) / len(carried))
    assert mixed, "no response saw an update"
    first, *later = entries
    assert first["sampler_gap/max"] < 1e-4, "two engines, the same weights"
    assert abs(first["correction/max"] - 1) < 1e-4
    for entry in later:
        assert entry["staleness"] > 0
        assert entry["sampler_gap/max"] > 1e-3 and abs(entry["correction/max"] - 1) > 1e-3
        most = max(abs(m - s) for r in rollouts(folder, entry["step"]) for m, s in told(r))
        assert entry["sampler_gap/max"] == pytest.approx(most, rel=1e-4)


def test_with_grpo_the_reference_alone_scores_all_rows(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    tree = opd_tree(tmp_path, models[0], {}, method="grpo", reference={"model": str(models[1])})
    recipe = parse_recipe({k: v for k, v in tree.items() if k != "teachers"} | {"grpo": {"kl_weight": 0.1}})
    assert isinstance(recipe, GrpoRecipe)
    engine = TeacherEngine(recipe, Place(str(Path.cwd()), 0, 1, None), None)
    engine.load()
    prompt = Prompt(0, "here", (), "sums", "math", "1", None, None, {})
    (score,) = engine.score([Rollout(prompt, 0, [5, 6], [7, 8, 9], None, True, "")], 1.0, False)
    assert isinstance(score, Scores) and score.reference_logprobs_R is not None
    assert score.reference_logprobs_R.shape == (3,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"device": "cuda"}}, "train.device is cuda, but the cluster has 0 GPUs"),
        ({"cluster": {"learner_ranks": 512}}, "learner_ranks: 512 processes at once, and this machine has"),
        ({"tracking": {"profile": True}}, "profile measures one process"),
    ],
)
def test_what_a_cluster_cannot_do_is_said_at_once(
    changes: Tree, message: str, models: list[Path], tmp_path: Path
) -> None:
    recipe = parse_recipe(merged(tree_of(tmp_path, models), changes))
    with pytest.raises(BadInput, match=message):
        gopd.train(recipe, cluster="local")
    assert not (tmp_path / "runs" / "run").exists()


def test_sampling_ahead_needs_a_cluster(models: list[Path], tmp_path: Path) -> None:
    recipe = parse_recipe(tree_of(tmp_path, models, train={"max_staleness": 1}))
    with pytest.raises(
        BadInput, match="max_staleness lets sampling and training overlap, which needs --cluster"
    ):
        gopd.train(recipe)
