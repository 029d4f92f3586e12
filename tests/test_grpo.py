"""GRPO against float64 brute force: by hand, by enumeration, and by Transformers with autograd."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gopd
from gopd.errors import BadInput
from gopd.learner import Learner
from gopd.logprobs import Projection, linear_loss
from gopd.loss import MicroBatchLoss
from gopd.methods.batch import Batch
from gopd.objective import clipped_surrogate, group_advantages, k3
from gopd.packing import pack
from gopd.recipe import GrpoRecipe
from gopd.recipe_file import parse_recipe
from gopd.sections import CorrectionSection, ObjectiveSection
from gopd.setup import LocalRoles, prepare
from gopd.tracking import read_metrics
from gopd.types import Rollout, Surrogate, TokenTerms
from runs import merged, opd_tree, outcome, write_rows
from runs import rollouts as rows_of
from tiny import (
    CPU,
    NO_CLIP,
    Bench,
    assert_gradients,
    assert_rows,
    first_gradients,
    load,
    make_rollouts,
    opd_recipe,
    plain64,
    row_logprobs,
)

# --- the mathematics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [True, False])
def test_advantages_are_rewards_against_their_group(normalize: bool) -> None:
    rewards = [1.0, 0.0, 1.0, 0.25, 0.5, 0.5, 0.0, 1.0]
    groups = [0, 2, 0, 1, 2, 1, 0, 2]
    found = group_advantages(torch.tensor(rewards).double(), torch.tensor(groups), normalize=normalize)
    for i, (reward, group) in enumerate(zip(rewards, groups, strict=True)):
        own = [r for r, g in zip(rewards, groups, strict=True) if g == group]
        mean = sum(own) / len(own)
        deviation = math.sqrt(sum((r - mean) ** 2 for r in own) / (len(own) - 1))
        expected = (reward - mean) / (deviation + 1e-6 if normalize else 1)
        assert float(found[i]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("normalize", [True, False])
def test_equal_rewards_give_exactly_no_advantage(normalize: bool) -> None:
    """The mean of three times 0.1 is not 0.1 in floating point."""
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.7, 1.0], dtype=torch.float64)
    found = group_advantages(rewards, torch.tensor([0, 0, 0, 1, 2]), normalize=normalize)
    assert found.tolist() == [0.0] * 5


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "slope"),
    [
        (2.0, 1.0, -2.0, 2.0),
        (2.0, 1.1, -2.2, 2.2),
        (2.0, 1.5, -2.6, 0.0),  # beyond 1 + 0.3: held
        (2.0, 0.5, -1.0, 1.0),  # a likelier token may always be made likelier again
        (-2.0, 1.0, 2.0, -2.0),
        (-2.0, 0.9, 1.8, -1.8),
        (-2.0, 0.5, 1.6, 0.0),  # below 1 − 0.2: held
        (-2.0, 1.5, 3.0, -3.0),
        (0.0, 1.5, 0.0, 0.0),
    ],
)
def test_clipping_by_hand(advantage: float, ratio: float, loss: float, slope: float) -> None:
    old = torch.tensor([-1.3], dtype=torch.float64)
    bounds = torch.tensor([0.2, 0.3], dtype=torch.float64).unbind()
    found = clipped_surrogate(old + math.log(ratio), old, torch.tensor([advantage]).double(), *bounds)
    assert [float(x) for x in found] == pytest.approx([loss, slope, ratio], abs=1e-12)


def test_k3_is_unbiased_never_negative_and_its_gradient_is_that_of_the_forward_kl() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    own, other = logits.log_softmax(-1), reference.log_softmax(-1)
    value, slope = k3(own.detach(), other)
    assert float(value.min()) >= 0
    probs = own.detach().exp()
    kl = float((probs * (own.detach() - other)).sum())
    assert float((probs * value).sum()) == pytest.approx(kl, abs=1e-12)
    weights = probs * -slope  # E_S[∂k3/∂ℓ · ∇ℓ]
    (found,) = torch.autograd.grad((weights * own).sum(), logits, retain_graph=True)
    (expected,) = torch.autograd.grad((other.exp() * (other - own)).sum(), logits)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def enumerated_gradient(logit: float, reference: float, beta: float, size: int, normalize: bool) -> float:
    """∂loss/∂z by the package for logits (z, 0), the first token having reward 1: every group, by its probability."""
    first = 1 / (1 + math.exp(-logit))
    groups = list(itertools.product([0, 1], repeat=size))
    ids = [token for group in groups for token in group]
    rewards = torch.tensor([float(token == 0) for token in ids], dtype=torch.float64)
    numbers = torch.arange(len(groups)).repeat_interleave(size)
    advantages = group_advantages(rewards, numbers, normalize=normalize)
    weights = [math.prod(first if t == 0 else 1 - first for t in g) / size for g in groups for _ in g]
    reference_logprobs = torch.tensor([reference, 0.0], dtype=torch.float64).log_softmax(-1)
    terms = [
        TokenTerms(a[None], 0.0, None, Surrogate(0.2, 0.2, None, beta, reference_logprobs[token][None]))
        for a, token in zip(advantages, ids, strict=True)
    ]
    packed = pack([[0]] * len(ids), [[token] for token in ids], CPU)
    loss = MicroBatchLoss(
        ObjectiveSection(),
        CorrectionSection(),
        packed,
        terms,
        [None] * len(ids),
        torch.tensor(weights, dtype=torch.float64),
        None,
        1.0,
    )
    head = torch.tensor([[logit], [0.0]], dtype=torch.float64, requires_grad=True)
    hidden = torch.ones(len(ids), 1, dtype=torch.float64, requires_grad=True)
    linear_loss(Projection(hidden, head), loss, 1.0).backward()
    assert head.grad is not None
    return float(head.grad[0])


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("logit", [-1.5, 0.0, 0.7])
def test_the_mean_gradient_over_all_groups_is_the_known_one(logit: float, size: int) -> None:
    """Without division: (1 − 1/G) of that of E[r], as the mean holds the response itself; plus β·KL(R ‖ S)'s."""
    p, r, beta = 1 / (1 + math.exp(-logit)), 1 / (1 + math.exp(-0.4)), 0.3
    expected = -(1 - 1 / size) * p * (1 - p) + beta * (p - r)
    assert enumerated_gradient(logit, 0.4, beta, size, normalize=False) == pytest.approx(expected, abs=1e-12)


def test_at_the_known_optimum_the_gradient_is_zero() -> None:
    """(1 − 1/G)·p(1 − p) = β(p − r) solved for p."""
    size, beta, r = 4, 0.3, 1 / (1 + math.exp(-0.4))
    a, b, c = 1 - 1 / size, beta - (1 - 1 / size), -beta * r
    p = (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    assert r < p < 1
    logit = math.log(p / (1 - p))
    assert enumerated_gradient(logit, 0.4, beta, size, normalize=False) == pytest.approx(0, abs=1e-12)
    assert abs(enumerated_gradient(logit + 0.1, 0.4, beta, size, normalize=False)) > 1e-3


# --- one update -----------------------------------------------------------------------------------------------------


def grpo_recipe(folder: Path, **sections: Any) -> GrpoRecipe:
    tree: dict[str, Any] = {
        "method": "grpo",
        "student": {"model": str(folder)},
        "data": {"files": ["rows.jsonl"], "verifier": "math", "max_response_tokens": 64},
        "train": {"steps": 4, "tokens_per_micro_batch": 90} | sections.pop("train", {}),
        "optim": {"lr": 1e-3, "grad_clip": NO_CLIP},
    }
    recipe = parse_recipe(merged(tree, sections))
    assert isinstance(recipe, GrpoRecipe)
    return recipe


def learner_of(recipe: GrpoRecipe) -> Learner:
    return Learner(
        recipe,
        load(Path(recipe.student.model)),
        total_steps=4,
        aggregation=recipe.grpo.aggregation,
        correction=recipe.correction,
        temperature=recipe.sampler.temperature,
    )


REWARDS = (1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0)
GROUPS = (0, 0, 0, 1, 1, 2, 2)
"""The second group learns nothing: both are right."""


def grouped(recipe: GrpoRecipe, learner: Learner, routes: tuple[str | None, ...] = (None,)) -> list[Rollout]:
    """Seven responses to three prompts, with log-probs that a sampler might have had."""
    rollouts = make_rollouts(recipe, learner.student, routes)
    generator = torch.Generator().manual_seed(3)
    for i, rollout in enumerate(rollouts):
        first = rollouts[GROUPS.index(GROUPS[i])]
        rollout.prompt, rollout.prompt_ids, rollout.reward = first.prompt, first.prompt_ids, REWARDS[i]
        noise = torch.randn(len(rollout.response_ids), generator=generator)
        rollout.sampler_logprobs_R = learner.logprobs([rollout])[0] + 0.4 * noise
    return rollouts


def own_advantages(normalize: bool) -> list[float]:
    third, half = 1 / 3, 0.5
    centred = [1 - third, -third, -third, 0, 0, half, -half]
    deviations = [math.sqrt(third)] * 3 + [1.0] * 2 + [math.sqrt(half)] * 2
    return [c / (d + 1e-6) if normalize else c for c, d in zip(centred, deviations, strict=True)]


def surrogate_loss(
    own_R: Tensor, old_R: Tensor, advantage: float, low: float, high: float, weight_R: Tensor | float
) -> Tensor:
    ratio = (own_R - old_R).exp()
    held = ratio.clamp(1 - low, 1 + high)
    return weight_R * -torch.minimum(ratio * advantage, held * advantage)


CASES = ("fresh", "off-policy", "another engine", "both", "with a KL", "not normalized")


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_are_those_of_brute_force(
    case: str, aggregation: str, student_folder: Path, reference_folder: Path
) -> None:
    normalize, beta = case != "not normalized", 0.2 if case == "with a KL" else 0.0
    section = {"normalize": normalize, "kl_weight": beta, "aggregation": aggregation, "clip_high": 0.28}
    recipe = grpo_recipe(student_folder, grpo=section, sampler={"temperature": 0.8})
    learner = learner_of(recipe)
    rollouts = grouped(recipe, learner)
    plain, reference = plain64(student_folder), plain64(reference_folder)
    scores: list[Any] = [None] * len(rollouts)
    if beta:
        scores = [
            gopd.types.Scores(None, 0.0, reference_logprobs_R=picked(reference, r).float()) for r in rollouts
        ]
    other = case in ("another engine", "both")
    batch = Batch.of(recipe, rollouts, scores, exact=not other)
    stale = [r.sampler_logprobs_R for r in rollouts]
    old = dict(enumerate(stale)) if case in ("off-policy", "with a KL") else None
    if case == "both":
        old = {i: x + 0.1 for i, x in enumerate(stale)}
    update = learner.update(rollouts, scores, batch.terms(range(len(rollouts)), old))

    lengths = [len(r.response_ids) for r in rollouts]
    losses = []
    for i, (rollout, advantage) in enumerate(zip(rollouts, own_advantages(normalize), strict=True)):
        own = picked(plain, rollout, grad=True)
        before = own.detach() if old is None else old[i].double()
        weight = (before - stale[i].double()).exp().clamp_max(5.0) if other else 1.0
        loss = surrogate_loss(own, before, advantage, 0.2, 0.28, weight)
        if beta:
            gap = scores[i].reference_logprobs_R.double() - own
            loss = loss + beta * (gap.exp() - gap - 1)
        factor = {
            "token-mean": 1 / sum(lengths),
            "seq-mean-token-mean": 1 / (len(rollouts) * lengths[i]),
            "seq-mean-token-sum": 1 / len(rollouts),
        }[aggregation]
        losses.append(factor * loss.sum())
    expected = torch.stack(losses).sum()
    names, parameters = zip(*plain.named_parameters(), strict=True)
    gradients = torch.autograd.grad(expected, parameters)
    assert update.loss == pytest.approx(float(expected.detach()), rel=2e-5, abs=1e-6)
    assert_gradients(first_gradients(learner), dict(zip(names, gradients, strict=True)))
    assert [report is None for report in update.reports] == [
        not beta and a == 0 for a in own_advantages(True)
    ]
    if old is not None:
        seen = [(i, report) for i, report in enumerate(update.reports) if report is not None]
        ratios = [(picked(plain, rollouts[i]) - old[i].double()).exp() for i, _ in seen]
        assert_rows([report.ratio_R for _, report in seen], ratios)
        clipped = torch.cat([report.clipped_R for _, report in seen])
        assert 0 < int(clipped.sum()) < len(clipped)


def picked(model: Any, rollout: Rollout, grad: bool = False) -> Tensor:
    """ℓ of the response's tokens at temperature 0.8."""
    with torch.set_grad_enabled(grad):
        rows = row_logprobs(model, rollout.prompt_ids, rollout.response_ids, 0.8)
        return rows[torch.arange(len(rollout.response_ids)), torch.tensor(rollout.response_ids)]


@pytest.mark.parametrize("off_policy", [False, True])
@pytest.mark.parametrize("estimator", ["sampled", "full"])
def test_some_routes_have_a_teacher_and_others_a_reward_in_one_batch(
    estimator: str, off_policy: bool, student_folder: Path, teacher_folder: Path
) -> None:
    """Loss and gradient of a mixed batch are the sums of those of its parts, in the first update and in later ones."""
    recipe = opd_recipe(
        student_folder,
        {"teacher": {"model": str(teacher_folder)}},
        reward_routes=("reward",),
        objective={"reward_scale": 1.0, "estimator": estimator, "aggregation": "seq-mean-token-sum"},
        sampler={"samples_per_prompt": 3},
    )
    grpo = grpo_recipe(student_folder, grpo={"aggregation": "seq-mean-token-sum"})
    learner = learner_of(grpo)
    rewarded = grouped(grpo, learner, ("reward",))
    taught = make_rollouts(recipe, learner.student, ["teacher"], (4, 9, 1))
    for i, rollout in enumerate(taught):
        rollout.prompt = replace(rollout.prompt, index=10 + i)
        rollout.sampler_logprobs_R = learner.logprobs([rollout])[0] + 0.3
    mixed = [rewarded[0], taught[0], *rewarded[1:5], taught[1], taught[2], *rewarded[5:]]

    def one_update(recipe: Any, rollouts: list[Rollout]) -> tuple[float, dict[str, Tensor]]:
        bench = Bench.of(recipe) if recipe.method == "opd" else None
        learner = learner_of(recipe) if bench is None else bench.learner
        scores = [None] * len(rollouts) if bench is None else bench.score(rollouts)
        old = {i: r.sampler_logprobs_R for i, r in enumerate(rollouts)} if off_policy else None
        terms = Batch.of(recipe, rollouts, scores, exact=True).terms(range(len(rollouts)), old)
        return learner.update(rollouts, scores, terms).loss, first_gradients(learner)

    loss, gradients = one_update(recipe, mixed)
    parts = [(one_update(grpo, rewarded), 7 / 10), (one_update(recipe, taught), 3 / 10)]
    assert loss == pytest.approx(sum(share * part for (part, _), share in parts), rel=1e-5)
    expected = {name: sum(share * g[name] for (_, g), share in parts) for name in gradients}
    assert_gradients(gradients, expected, tolerance=1e-5)
    assert Bench.of(recipe).score(mixed)[0] is None


def test_one_update_makes_no_stale_pass_and_more_make_one_only_for_another_sampler(
    student_folder: Path,
) -> None:
    recipe = grpo_recipe(student_folder)
    learner = learner_of(recipe)
    rollouts = grouped(recipe, learner)
    calls: list[int] = []

    def compute(rows: list[Rollout]) -> list[Tensor]:
        calls.append(len(rows))
        return learner.logprobs(rows)

    def old(exact: bool, **train: int) -> dict[int, Tensor]:
        more = recipe.model_copy(update={"train": recipe.train.model_copy(update=train)})
        return Batch.of(more, rollouts, [None] * 7, exact=exact).old_logprobs(compute)

    assert old(exact=True) == old(exact=False) == {}
    found = old(exact=True, passes=2)
    assert calls == []
    assert all(found[i] is rollouts[i].sampler_logprobs_R for i in found)
    assert old(exact=False, mini_batches=2).keys() == found.keys() == {0, 1, 2, 5, 6}
    assert calls == [5], "rows that teach nothing need no pass"
    terms = Batch.of(recipe, rollouts, [None] * 7, exact=True).terms(range(7), None)
    update = learner.update(rollouts, [None] * 7, terms)
    assert all(report is None or report.ratio_R is None for report in update.reports)


def test_rows_are_cut_into_mini_batches_and_gone_through_again(student_folder: Path) -> None:
    recipe = grpo_recipe(
        student_folder,
        train={"mini_batches": 2, "passes": 2, "prompts_per_step": 4},
        grpo={"drop_uniform": True},
    )
    rollouts = grouped(recipe, learner_of(recipe))
    batch = Batch.of(recipe, rollouts, [None] * 7, exact=True)
    assert batch.parts() == [[0, 1, 2], [5, 6]] * 2
    for rollout in rollouts:
        rollout.reward = 1.0
    assert Batch.of(recipe, rollouts, [None] * 7, exact=True).parts() == []


def test_a_batch_without_a_difference_leaves_the_weights_alone(student_folder: Path) -> None:
    recipe = grpo_recipe(student_folder)
    learner = learner_of(recipe)
    rollouts = grouped(recipe, learner)
    for rollout in rollouts:
        rollout.reward = 1.0
    before = {n: p.clone() for n, p in learner.parameters.items()}
    terms = Batch.of(recipe, rollouts, [None] * 7, exact=True).terms(range(7), None)
    update = learner.update(rollouts, [None] * 7, terms)
    assert (update.loss, update.grad_norm) == (0.0, 0.0)
    assert all(torch.equal(p, before[n]) for n, p in learner.parameters.items())


# --- whole runs -----------------------------------------------------------------------------------------------------


def grpo_tree(folder: Path, student: Path, /, **sections: Any) -> dict[str, Any]:
    """The small OPD recipe's rows, four responses to each prompt."""
    tree = opd_tree(
        folder, student, {}, method="grpo", sampler={"samples_per_prompt": 4}, data={"verifier": "math"}
    )
    del tree["teachers"]
    return merged(tree, sections)


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier that a random model sometimes satisfies."""

    def grade(rollouts: list[Rollout]) -> None:
        for rollout in rollouts:
            rollout.reward = float(sum(rollout.response_ids) % 2 == 0)

    monkeypatch.setattr("gopd.collect.grade", grade)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {
            "train": {"mini_batches": 2, "passes": 2},
            "grpo": {"kl_weight": 0.1, "drop_uniform": True},
            "optim": {"schedule": "linear"},
        },
    ],
    ids=["plain", "off-policy"],
)
def test_a_run_learns_from_rewards_and_repeats_bit_by_bit(
    sections: dict[str, Any], tmp_path: Path, student_folder: Path, parity: None
) -> None:
    tree = grpo_tree(tmp_path, student_folder, **sections)
    run = gopd.train(parse_recipe(tree))
    whole = read_metrics(run / "metrics.jsonl")
    assert len(whole) == 3
    assert {"groups/uniform", "reward/sums", "loss", "entropy"} <= whole[0].keys()
    off_policy = bool(sections)
    assert [name in whole[0] for name in ("ratio/clipped", "kl_to_reference")] == [off_policy] * 2
    assert whole[-1]["grad_norm"] > 0
    assert whole[-1]["lr"] == pytest.approx(1e-3 / 12 if off_policy else 1e-3)
    learned = [row for row in rows_of(run, 1) if row["student_logprobs"] is not None]
    assert 0 < len(learned) <= 16
    for row in learned:  # what the first update saw: the weights that sampled
        assert row["reference_logprobs"] == (
            pytest.approx(row["sampler_logprobs"], abs=1e-4) if off_policy else None
        )
    first = learned[0]
    assert first["student_logprobs"] == pytest.approx(first["sampler_logprobs"], abs=1e-4)
    again = gopd.train(parse_recipe(merged(tree, {"tracking": {"name": "again"}})))
    assert outcome(again)["metrics"] == outcome(run)["metrics"]


def test_adapters_are_held_to_their_base_without_a_second_copy(
    tmp_path: Path, student_folder: Path, parity: None
) -> None:
    tree = grpo_tree(tmp_path, student_folder, grpo={"kl_weight": 0.1}, train={"passes": 2})
    tree["student"]["lora"] = {"rank": 2}
    recipe = parse_recipe(tree)
    scorer = LocalRoles(recipe, prepare(recipe)).scorer
    assert scorer is not None and scorer.models == []
    run = gopd.train(recipe)
    for step, same in ((1, True), (3, False)):
        rows = [row for row in rows_of(run, step) if row["reference_logprobs"]]
        base, own = (
            torch.tensor([n for r in rows for n in r[f"{w}_logprobs"]]) for w in ("reference", "student")
        )
        assert torch.allclose(base, own, atol=1e-4) == same


def test_where_sampler_and_trainer_differ_the_weights_and_the_ratio_are_apart(
    tmp_path: Path, student_folder: Path, parity: None
) -> None:
    """In bfloat16: rollout correction from the sampler to the weights that sampled, the ratio from there on."""
    train = {"mini_batches": 2, "compute_dtype": "bfloat16"}
    run = gopd.train(parse_recipe(grpo_tree(tmp_path, student_folder, train=train)))
    for entry in read_metrics(run / "metrics.jsonl"):
        assert 0.9 < entry["correction/min"] < 1 < entry["correction/max"] < 1.1
        assert entry["ratio/mean"] == pytest.approx(1, abs=0.2)


def test_a_step_that_teaches_nothing_is_no_error(
    tmp_path: Path, student_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("loop", "collect"):
        monkeypatch.setattr(f"gopd.{place}.grade", lambda found: [setattr(r, "reward", 0.0) for r in found])
    held_out = write_rows(tmp_path / "held.jsonl", 4)
    tree = grpo_tree(tmp_path, student_folder, grpo={"drop_uniform": True}, tracking={"profile": True})
    tree["validation"] = {"files": [str(held_out)], "verifier": "math", "every": 2}
    run = gopd.train(parse_recipe(tree))
    entries = read_metrics(run / "metrics.jsonl")
    assert [e["groups/uniform"] for e in entries] == [1.0] * 3
    assert all("loss" not in e for e in entries)
    said = capsys.readouterr().out
    for source in ("sums", "more sums"):
        assert f"warning: {source}: not one response was right before training" in said


# --- bad input ------------------------------------------------------------------------------------------------------


def test_rows_without_a_verifier_are_named(tmp_path: Path, student_folder: Path) -> None:
    tree = grpo_tree(tmp_path, student_folder)
    tree["data"]["verifier"] = "none"
    with pytest.raises(BadInput, match=r"train\.jsonl:1 \(sums\), .* and 9 more rows: no verifier"):
        prepare(parse_recipe(tree))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": {"samples_per_prompt": 1}}, "method grpo judges a response against the others"),
        ({"reference": {"model": "x"}}, "reference is used by grpo.kl_weight, which is 0"),
        ({"grpo": {"clip_low": 1.5}}, "grpo.clip_low"),
        ({"objective": {"reward_scale": 1.0}}, "unknown key objective"),
    ],
)
def test_impossible_grpo_recipes(
    changes: dict[str, Any], message: str, tmp_path: Path, student_folder: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        parse_recipe(merged(grpo_tree(tmp_path, student_folder), changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward_routes": ["t"], "sampler": {"samples_per_prompt": 2}}, "reward_routes: 't' has a teacher"),
        ({"reward_routes": ["r"]}, "reward_routes judges a response"),
        ({"objective": {"reward_weight": 1.0}}, "objective.reward_weight judges a response"),
        ({"grpo": {"kl_weight": 0.1}}, "grpo.kl_weight belongs to method grpo"),
    ],
)
def test_impossible_mixes(
    changes: dict[str, Any], message: str, tmp_path: Path, student_folder: Path
) -> None:
    with pytest.raises(BadInput, match=message):
        parse_recipe(merged(opd_tree(tmp_path, student_folder, {"t": student_folder}), changes))


def test_defaults_are_the_published_teachers(student_folder: Path) -> None:
    recipe = parse_recipe(
        {
            "method": "grpo",
            "student": {"model": "m"},
            "data": {"files": ["x.jsonl"]},
            "train": {"steps": 500},
            "optim": {"warmup_steps": 3},
        }
    )
    assert isinstance(recipe, GrpoRecipe)
    assert (recipe.train.prompts_per_step, recipe.sampler.samples_per_prompt, recipe.optim.lr) == (
        128,
        8,
        1e-6,
    )
    assert (recipe.grpo.kl_weight, recipe.grpo.clip_low, recipe.grpo.clip_high) == (0.0, 0.2, 0.2)
    assert json.loads(recipe.model_dump_json())["method"] == "grpo"
