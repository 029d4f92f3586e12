"""The guard: optimizer steps that are refused leave everything as it was, are noted with their rows, and end the run
or not; a resume judges like the run that was never killed."""

from __future__ import annotations

import json
import math
import random
import shutil
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import gopd
from conftest import MakeModel
from gopd import cli
from gopd.errors import BadInput, RunFailed
from gopd.guard import FEWEST, NONE, WINDOW, Bounds, Guard
from gopd.learner import NonFinite
from gopd.methods import sft
from gopd.recipe_file import parse_recipe
from gopd.run_sections import GuardSection
from runs import Tree, lines, merged, opd_tree, outcome, rollouts, saved_steps, sft_tree, write_recipe
from tiny import Bench, make_rollouts, opd_recipe

POISON = 10
"""The step of `spiked` whose rows pull all in one direction."""


@pytest.fixture(scope="module")
def models(make_model: MakeModel) -> list[Path]:
    return [make_model(seed) for seed in range(2)]


def spiked(folder: Path, models: list[Path], **guard: Any) -> Tree:
    """SFT with gradients of about one norm, but for one step."""
    rows: list[Tree] = [
        {"data_source": "sums", "prompt": f"{i}+{i % 7}=", "response": f"{i + i % 7}." + "x" * (i % 3)}
        for i in range(48)
    ]
    for row in rows[4 * (POISON - 1) : 4 * POISON]:
        row |= {"prompt": "hi", "response": "q"}
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return sft_tree(
        folder,
        models[0],
        train={"steps": 12},
        data={"shuffle": False},
        optim={"warmup_steps": 11},
        checkpoint={"every": 1, "keep_last": 12},
        guard={"grad_norm": 1.3, **guard},
    )


def far(folder: Path, models: list[Path], **guard: Any) -> Tree:
    """OPD of four steps, whose weights hardly move; the third batch's KL is the largest."""
    changes: Tree = {"train": {"steps": 4}, "optim": {"lr": 1e-5}, "checkpoint": {"every": 1, "keep_last": 4}}
    return opd_tree(folder, models[0], {"a": models[1]}, guard={"kl": 5.45, **guard}, **changes)


def state(run: Path, step: int) -> Tree:
    """Weights, moments and the numbers of a checkpoint."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    found: Tree = json.loads((folder / "state.json").read_text())
    return found | {name: load_file(folder / f"{name}.safetensors") for name in ("weights", "optimizer")}


def same(one: Tree, other: Tree) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what is out of bounds ------------------------------------------------------------------------------------------


def test_bounds_are_multiples_of_the_median_of_the_last_steps_that_were_made() -> None:
    guard, chance = Guard(GuardSection(loss=3.0, grad_norm=2.0, kl=0.5)), random.Random(0)
    losses, norms = [], []
    for step in range(2 * WINDOW):
        bounds = guard.bounds()
        assert bounds.kl == 0.5
        if step < FEWEST:
            assert bounds.loss == bounds.grad_norm == math.inf
        else:
            assert bounds.loss == 3 * statistics.median(losses[-WINDOW:])
            assert bounds.grad_norm == 2 * statistics.median(norms[-WINDOW:])
        losses.append(chance.random()), norms.append(chance.random())
        guard.made(losses[-1], norms[-1])
        guard.skips()  # leaves the median alone
    taken_up = Guard(guard.section)
    taken_up.take_up(json.loads(json.dumps(guard.state())))
    assert taken_up == guard


def test_nothing_is_a_multiple_of_0_and_nothing_is_bounded_unless_asked_for() -> None:
    guard, bare = Guard(GuardSection(grad_norm=2.0)), Guard(GuardSection())
    for _ in range(WINDOW):
        guard.made(0.0, 0.0), bare.made(1.0, 1.0)
    assert guard.bounds() == bare.bounds() == NONE
    assert NONE.passed(1e300, 1e300, math.nan) is not None, "a KL that is no number is out of any bounds"
    assert NONE.passed(1e300, 1e300, 1e300) is None and not NONE.measures_kl


def test_what_is_out_of_bounds_is_said_with_both_numbers() -> None:
    said = Bounds(loss=2.0, grad_norm=10.0, kl=0.5).passed(2.5, 10.0, 7.0)
    assert said == "the loss is 2.5, above 2 and the mean KL is 7 nats per token, above 0.5"


def test_skips_in_a_row_are_counted_and_a_step_that_is_made_forgives_them() -> None:
    guard = Guard(GuardSection(action="skip", patience=2))
    assert [guard.skips(), guard.skips()] == [True, True]
    guard.made(1.0, 1.0)
    assert [guard.skips(), guard.skips(), guard.skips()] == [True, True, False]
    assert not Guard(GuardSection()).skips()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"guard": {"loss": 3.0}}, "sampled is no distance"),
        ({"guard": {"loss": 1.0}, "objective": {"estimator": "full"}}, "guard.loss"),
        ({"guard": {"action": "ignore"}}, "guard.action"),
        ({"guard": {"patients": 3}}, "did you mean guard.patience?"),
        ({"teachers": {"a": {"model": "t", "server": {"url": "http://h:1"}}}, "guard": {"kl": 1.0}}, "log Z"),
        ({"method": "grpo", "guard": {"kl": 1.0}}, "grpo.kl_weight"),
        ({"method": "grpo", "guard": {"loss": 2.0}}, "about 0"),
        ({"method": "sft", "guard": {"kl": 1.0}}, "no other model"),
    ],
)
def test_bounds_without_a_meaning_are_refused(changes: Tree, said: str) -> None:
    tree: Tree = {
        "student": {"model": "s"},
        "teachers": {"a": {"model": "t"}},
        "data": {"files": ["f"]},
        "train": {"steps": 1},
    }
    if "method" in changes:
        del tree["teachers"]
    with pytest.raises(BadInput, match=said.replace("?", r"\?")):
        parse_recipe(merged(tree, changes))


# --- one optimizer step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bounds", [Bounds(loss=1e-3), Bounds(grad_norm=1e-3), Bounds(kl=1e-3), "not finite"], ids=str
)
def test_a_refused_step_is_as_if_it_had_never_been(
    bounds: Bounds | str, student_folder: Path, teacher_folder: Path
) -> None:
    recipe = opd_recipe(
        student_folder,
        {"only": {"model": str(teacher_folder)}},
        student={"lora": {"rank": 2, "dropout": 0.3}},
        objective={"estimator": "full"},
        optim={"warmup_steps": 3},
    )
    plain, guarded = Bench.of(recipe), Bench.of(recipe)
    for number in range(2):
        rows = make_rollouts(recipe, plain.student, ["only"], (4 + number, 2, 6))
        if isinstance(bounds, Bounds):
            scores = guarded.score(rows)
            update = guarded.learner.update(rows, scores, guarded.terms(rows, scores, True), bounds=bounds)
            assert update.refused is not None and " is " in update.refused
            assert update.lr == guarded.learner.lr(number)
        else:
            broken = [sft.token_terms(row) for row in rows]
            broken[1].constant_R[0] = math.nan
            with pytest.raises(NonFinite):
                guarded.learner.update(rows, [None] * 3, broken)
        assert guarded.learner.updates == number and not guarded.student.module.training
        assert all(p.grad is None for p in guarded.learner.parameters.values())
        one, other = plain.update(rows), guarded.update(rows)
        assert (one.loss, one.grad_norm, one.lr) == (other.loss, other.grad_norm, other.lr)
        for name, weight in plain.learner.parameters.items():
            mine = guarded.learner.parameters[name]
            assert torch.equal(weight, mine)
            assert same(plain.learner.optimizer.state[weight], guarded.learner.optimizer.state[mine])


def test_the_mean_kl_is_that_of_all_tokens(student_folder: Path, teacher_folder: Path) -> None:
    """Between two bounds a hair apart around the mean of what is reported."""
    recipe = opd_recipe(student_folder, {"only": {"model": str(teacher_folder)}}, optim={"lr": 1e-12})
    bench = Bench.of(recipe)
    rows = make_rollouts(recipe, bench.student, ["only"])
    scores = bench.score(rows)
    terms = bench.terms(rows, scores, True)
    kls = [report.kl_R for report in bench.learner.update(rows, scores, terms).reports if report is not None]
    mean = float(torch.cat([kl for kl in kls if kl is not None]).double().mean())
    refused = [
        bench.learner.update(rows, scores, terms, bounds=Bounds(kl=mean + off)).refused
        for off in (-1e-4, 1e-4)
    ]
    assert refused[0] is not None and refused[1] is None


# --- whole runs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def skipping(
    models: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Any], tuple[Path, Path]]:
    """Run folders (with the folder they are in) of `spiked` and `far` with action skip; made once."""
    made: dict[Any, tuple[Path, Path]] = {}

    def run(make: Any) -> tuple[Path, Path]:
        if make not in made:
            folder = tmp_path_factory.mktemp("skipping")
            made[make] = (folder, gopd.train(parse_recipe(make(folder, models, action="skip"))))
        return made[make]

    return run


@pytest.mark.parametrize(("make", "at", "steps"), [(spiked, POISON, 12), (far, 3, 4)])
def test_a_skipped_step_changes_nothing_and_is_on_record(
    make: Any, at: int, steps: int, skipping: Callable[[Any], tuple[Path, Path]]
) -> None:
    _, run = skipping(make)
    metrics = lines(run / "metrics.jsonl")
    assert [entry["skipped"] for entry in metrics] == [int(step == at) for step in range(1, steps + 1)]
    before, after = state(run, at - 1), state(run, at)
    assert same(before["weights"], after["weights"]) and same(before["optimizer"], after["optimizer"])
    assert before["updates"] == after["updates"] == at - 1
    assert not same(state(run, at + 1)["weights"], after["weights"])
    rates = [entry["lr"] for entry in metrics]
    assert rates[at - 1] == rates[at], "the schedule waits"
    (event,) = lines(run / "skipped.jsonl")
    assert event["step"] == at
    if make is far:
        figure, bound = metrics[at - 1]["kl_to_target"], 5.45
        assert f"the mean KL is {figure:.4g} nats per token, above {bound}" in event["reason"]
        kept = rollouts(run, at)
        worst = sorted(kept, key=lambda row: -statistics.fmean(row["kls"]))
        assert [(e["where"], e["response_ids"]) for e in event["rows"]] == [
            (row["where"], row["response_ids"]) for row in worst
        ]
        assert event["rows"][0]["kl"] == pytest.approx(statistics.fmean(worst[0]["kls"]), rel=1e-4)
    else:
        norms = [entry["grad_norm"] for entry in metrics]
        bound = 1.3 * statistics.median(norms[: at - 1])
        assert max(norms[FEWEST : at - 1] + norms[at:]) < bound < norms[at - 1]
        assert f"the gradient norm is {norms[at - 1]:.4g}, above {bound:.4g}" in event["reason"]
        places = {int(entry["where"].rpartition(":")[2]) for entry in event["rows"]}
        assert places == set(range(4 * at - 3, 4 * at + 1))


@pytest.mark.parametrize(("make", "at"), [(spiked, POISON), (far, 3)])
def test_a_run_that_is_stopped_says_what_to_do_and_then_goes_on_as_if_it_had_skipped(
    make: Any,
    at: int,
    models: list[Path],
    tmp_path: Path,
    skipping: Callable[[Any], tuple[Path, Path]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    recipe, run = write_recipe(tmp_path / "recipe.yaml", make(tmp_path, models)), tmp_path / "runs" / "run"
    assert cli.main(["train", str(recipe)]) == 1
    said = capfd.readouterr().err
    failure = run / f"failure-step-{at:08d}.jsonl"
    for part in (f"training stopped at step {at}", ", above ", "--resume guard.action=skip", str(failure)):
        assert part in said, said
    assert "Traceback" not in said
    assert saved_steps(run)[-1] == at - 1 and not (run / "student").exists()
    assert len(lines(failure)) == 4 and lines(failure)[0].keys() >= {"where", "response_ids", "prompt_ids"}
    assert len(lines(run / "metrics.jsonl")) == at - 1
    assert cli.main(["train", str(recipe), "guard.action=skip", "--resume"]) == 0
    _, whole = skipping(make)
    last = saved_steps(run)[-1]
    one, other = state(run, last), state(whole, last)
    assert same(one["weights"], other["weights"]) and same(one["optimizer"], other["optimizer"])
    assert one["guard"] == other["guard"] and one["updates"] == other["updates"]


@pytest.mark.parametrize("kept", [POISON - 1, POISON])
def test_a_resume_judges_like_the_run_that_was_never_killed(
    kept: int, models: list[Path], tmp_path: Path, skipping: Callable[[Any], tuple[Path, Path]]
) -> None:
    """Killed after the skip: once its checkpoint was there, once not."""
    folder, whole = skipping(spiked)
    tree = merged(spiked(folder, models, action="skip"), {"tracking": {"folder": str(tmp_path)}})
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "recipe.yaml").unlink()
    shutil.rmtree(run / "student")
    for step in range(kept + 1, 13):
        shutil.rmtree(run / "checkpoints" / f"step-{step:08d}")
    write_recipe(run / "recipe.yaml", tree)
    gopd.train(parse_recipe(tree), resume=True)
    assert (run / "skipped.jsonl").read_bytes() == (whole / "skipped.jsonl").read_bytes()
    expected, found = outcome(whole), outcome(run)
    assert [key for key in expected if found.get(key) != expected[key]] == []


def grpo(folder: Path, models: list[Path], **guard: Any) -> Tree:
    """The KL to another reference is what teaches, as no answer is right."""
    tree = opd_tree(
        folder,
        models[0],
        {},
        method="grpo",
        reference={"model": str(models[1])},
        grpo={"kl_weight": 0.5},
        sampler={"samples_per_prompt": 2},
        data={"verifier": "math"},
        guard={"kl": 1e-3, **guard},
    )
    del tree["teachers"]
    return tree


def test_patience_ends(models: list[Path], tmp_path: Path) -> None:
    """With GRPO, whose KL is that to the reference; no step is ever made."""
    tree = grpo(tmp_path, models, action="skip", patience=2)
    with pytest.raises(RunFailed, match=r"stopped at step 3, .*2 optimizer steps before it were skipped"):
        gopd.train(parse_recipe(tree))
    run = tmp_path / "runs" / "run"
    assert [event["step"] for event in lines(run / "skipped.jsonl")] == [1, 2]
    kls = [entry["kl_to_reference"] for entry in lines(run / "metrics.jsonl")]
    assert f"the mean KL is {kls[1]:.4g} nats" in lines(run / "skipped.jsonl")[1]["reason"]


def test_a_batch_that_is_not_finite_can_be_skipped(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that rules a drawn token out, in the second batch."""
    from gopd.scorer import Scorer

    score, calls = Scorer.score, []

    def spoil(scorer: Scorer, rows: Any, **how: Any) -> Any:
        scores = score(scorer, rows, **how)
        calls.append(scores)
        if len(calls) == 2:
            scores[1].teacher_logprobs_R[0] = -math.inf  # type: ignore[union-attr, index]
        return scores

    monkeypatch.setattr(Scorer, "score", spoil)
    tree = far(tmp_path, models, kl=None, action="skip")
    run = gopd.train(parse_recipe(tree))
    metrics = lines(run / "metrics.jsonl")
    assert [entry["skipped"] for entry in metrics] == [0, 1, 0, 0]
    assert "loss" in metrics[0] and "loss" not in metrics[1]
    assert same(state(run, 1)["weights"], state(run, 2)["weights"]) and state(run, 4)["updates"] == 3
    (event,) = lines(run / "skipped.jsonl")
    (row,) = event["rows"]
    assert row["where"] in event["reason"] and "teacher a gives it probability 0" in event["reason"]
    assert row["response_ids"] == rollouts(run, 2)[1]["response_ids"]
