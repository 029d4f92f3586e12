"""One optimizer step against float64 brute force: forwards of each row alone, gradients by autograd."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel

from conftest import EOS, VOCABULARY, MakeModel
from gopd import logprobs
from gopd.card import student_card
from gopd.export import export_student
from gopd.learner import Learner, NonFinite
from gopd.logprobs import linear_logprobs
from gopd.methods import sft
from gopd.packing import pack
from gopd.recipe import OpdRecipe
from gopd.sharding import ALONE
from gopd.state import export_model
from gopd.types import Rollout, TokenTerms
from tiny import (
    CPU,
    NO_CLIP,
    Bench,
    Weights,
    assert_gradients,
    assert_rows,
    expected_update,
    first_gradients,
    group_rewards,
    load,
    make_rollouts,
    opd_recipe,
    plain64,
    plain64_now,
    row_logprobs,
    sft_recipe,
)

LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens of logits at a time, so that rows straddle chunks."""
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 5 * 4 * VOCABULARY)


@pytest.fixture(scope="module")
def teacher_llama(make_model: MakeModel) -> Path:
    return make_model(11, "llama")


@pytest.fixture(scope="module")
def plain_models(
    teacher_folder: Path, teacher_llama: Path, reference_folder: Path
) -> dict[str, tuple[PreTrainedModel, PreTrainedModel]]:
    """Teacher and reference of each route, as the oracle sees them."""
    reference = plain64(reference_folder)
    return {"alpha": (plain64(teacher_folder), reference), "beta": (plain64(teacher_llama), reference)}


def two_teachers(
    student: Path,
    alpha: Path,
    beta: Path,
    reference: Path,
    scales: tuple[float, float] = (1.0, 1.25),
    **sections: Any,
) -> OpdRecipe:
    teachers = {
        "alpha": {"model": str(alpha), "reward_scale": scales[0]},
        "beta": {"model": str(beta), "reward_scale": scales[1]},
    }
    return opd_recipe(student, teachers, reference={"model": str(reference)}, **sections)


ESTIMATORS: dict[str, dict[str, Any]] = {
    "sampled": {"estimator": "sampled"},
    "control": {"estimator": "sampled", "control_variate": True},
    "full": {"estimator": "full"},
    "topk": {"estimator": "topk", "top_k": 5},
}


# --- loss and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
@pytest.mark.parametrize(
    ("kind", "scales", "temperature"),
    [("tied", (1.0, 1.25), 1.0), ("untied", (0.5, 1.25), 0.7), ("tied", (1.0, 1.0), 0.7)],
)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_loss_and_gradients_are_those_of_brute_force(
    estimator: str,
    kind: str,
    scales: tuple[float, float],
    temperature: float,
    aggregation: str,
    student_folder: Path,
    llama_folder: Path,
    teacher_folder: Path,
    teacher_llama: Path,
    reference_folder: Path,
    plain_models: dict[str, tuple[PreTrainedModel, PreTrainedModel]],
) -> None:
    student = {"tied": student_folder, "untied": llama_folder}[kind]
    recipe = two_teachers(
        student,
        teacher_folder,
        teacher_llama,
        reference_folder,
        scales,
        objective=ESTIMATORS[estimator] | {"aggregation": aggregation},
        sampler={"temperature": temperature},
        train={"tokens_per_micro_batch": 90},
    )
    bench = Bench.of(recipe)
    rollouts = make_rollouts(recipe, bench.student, ["alpha", "beta", "beta"])
    update = bench.update(rollouts)
    expected = expected_update(recipe, plain64(student), rollouts, plain_models)
    assert update.loss == pytest.approx(expected.loss, rel=2e-5, abs=1e-5)
    assert_gradients(first_gradients(bench.learner), expected.gradients)
    norm = math.sqrt(sum(float(g.square().sum()) for g in expected.gradients.values()))
    assert update.grad_norm == pytest.approx(norm, rel=1e-4)
    assert_rows([r.student_logprobs_R for r in update.reports], [t.logprobs for t in expected.tokens])
    assert_rows([r.kl_R for r in update.reports], [t.kl for t in expected.tokens], atol=3e-4)
    assert_rows([r.advantage_R for r in update.reports], [t.advantage for t in expected.tokens], atol=3e-4)
    assert all(r.correction_R is None for r in update.reports)


@pytest.mark.parametrize("budget", [40, 10_000])
@pytest.mark.parametrize("estimator", ["sampled", "full"])
def test_samples_of_one_prompt_give_the_loss_and_gradients_of_brute_force(
    estimator: str,
    budget: int,
    student_folder: Path,
    teacher_folder: Path,
    teacher_llama: Path,
    reference_folder: Path,
    plain_models: dict[str, tuple[PreTrainedModel, PreTrainedModel]],
) -> None:
    """Student, teacher and reference all compute the shared prompt once."""
    recipe = two_teachers(
        student_folder,
        teacher_folder,
        teacher_llama,
        reference_folder,
        objective=ESTIMATORS[estimator],
        train={"tokens_per_micro_batch": budget},
    )
    bench = Bench.of(recipe)
    rollouts = make_rollouts(recipe, bench.student, ["alpha"], (5, 1, 9, 30, 14, 2, 7))
    for i, rollout in enumerate(rollouts):
        rollout.prompt_ids = rollouts[i // 4].prompt_ids
    update = bench.update(rollouts)
    expected = expected_update(recipe, plain64(student_folder), rollouts, plain_models)
    assert update.loss == pytest.approx(expected.loss, rel=2e-5, abs=1e-5)
    assert_gradients(first_gradients(bench.learner), expected.gradients)
    assert_rows([r.student_logprobs_R for r in update.reports], [t.logprobs for t in expected.tokens])
    assert_rows([r.advantage_R for r in update.reports], [t.advantage for t in expected.tokens])


@pytest.mark.parametrize("estimator", ["sampled", "control"])
def test_rewards_enter_the_advantage_with_their_weight(
    estimator: str,
    student_folder: Path,
    teacher_folder: Path,
    teacher_llama: Path,
    reference_folder: Path,
    plain_models: dict[str, tuple[PreTrainedModel, PreTrainedModel]],
) -> None:
    folders = (student_folder, teacher_folder, teacher_llama, reference_folder)
    several = {"samples_per_prompt": 3}
    recipe = two_teachers(*folders, objective=ESTIMATORS[estimator] | {"reward_weight": 3.0}, sampler=several)
    bench, without = Bench.of(recipe), Bench.of(two_teachers(*folders, objective=ESTIMATORS[estimator]))
    rollouts = make_rollouts(recipe, bench.student, ["alpha", "beta"])
    for i, (rollout, first) in enumerate(zip(rollouts, (0, 0, 0, 3, 3, 5, 5), strict=True)):
        rollout.prompt, rollout.prompt_ids = rollouts[first].prompt, rollouts[first].prompt_ids
        rollout.reward = [1.0, 0.0][i % 3 == 1]
    update, other = bench.update(rollouts), without.update(rollouts)
    expected = expected_update(recipe, plain64(student_folder), rollouts, plain_models)
    assert update.loss == pytest.approx(expected.loss, rel=2e-5)
    assert_gradients(first_gradients(bench.learner), expected.gradients)
    for rollout, more, less in zip(rollouts, update.reports, other.reports, strict=True):
        gain = more.advantage_R - less.advantage_R
        own = group_rewards(rollouts, normalize=True)[id(rollout)]
        torch.testing.assert_close(gain, torch.full_like(gain, 3 * own), rtol=0, atol=2e-5)


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"])
@pytest.mark.parametrize("estimator", ["full", "corrected"])
def test_micro_batches_change_neither_loss_nor_gradients(
    estimator: str,
    aggregation: str,
    student_folder: Path,
    teacher_folder: Path,
    teacher_llama: Path,
    reference_folder: Path,
) -> None:
    found = []
    for budget in (1, 60, 120, 10_000):
        recipe = two_teachers(
            student_folder,
            teacher_folder,
            teacher_llama,
            reference_folder,
            objective=ESTIMATORS["full" if estimator == "full" else "sampled"] | {"aggregation": aggregation},
            correction={"level": "sequence" if estimator == "corrected" else "token"},
            train={"tokens_per_micro_batch": budget},
        )
        bench = Bench.of(recipe)
        rollouts = off_policy(make_rollouts(recipe, bench.student, ["alpha", "beta", "beta"]), bench)
        update = bench.update(rollouts, on_policy=estimator != "corrected")
        found.append((update, first_gradients(bench.learner)))
    last, gradients = found[-1]
    for update, others in found[:-1]:
        assert update.loss == pytest.approx(last.loss, rel=3e-6)
        assert_gradients(others, gradients, tolerance=3e-6)
        for mine, theirs in zip(update.reports, last.reports, strict=True):
            torch.testing.assert_close(mine.advantage_R, theirs.advantage_R, rtol=1e-5, atol=3e-5)
            assert mine.scores.route == theirs.scores.route


@pytest.mark.parametrize("estimator", ["sampled", "control"])
def test_the_mean_of_the_sampled_gradient_is_the_full_gradient(
    estimator: str, student_folder: Path, teacher_folder: Path, reference_folder: Path
) -> None:
    """Exact enumeration: one row per token of the vocabulary, each weighted with its probability under S.

    The weight comes from the rollout correction: with sampler log-probs of 0, w = exp(ℓ_train) = S(token).
    """
    teachers = {"only": {"model": str(teacher_folder), "reward_scale": 1.25}}
    gradients = {}
    for name in (estimator, "full"):
        recipe = opd_recipe(
            student_folder,
            teachers,
            reference={"model": str(reference_folder)},
            objective=ESTIMATORS[name] | {"aggregation": "seq-mean-token-sum"},
        )
        bench = Bench.of(recipe)
        first = make_rollouts(recipe, bench.student, ["only"], [1])[0]
        tokens = range(VOCABULARY) if name != "full" else [0]
        rollouts = [replace(first, response_ids=[v], sampler_logprobs_R=torch.zeros(1)) for v in tokens]
        bench.update(rollouts, on_policy=name == "full")
        gradients[name] = {n: g * len(rollouts) for n, g in first_gradients(bench.learner).items()}
    assert_gradients(gradients[estimator], gradients["full"])


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.25])
def test_the_one_sample_kl_is_unbiased(
    scale: float, student_folder: Path, teacher_folder: Path, reference_folder: Path
) -> None:
    recipe = opd_recipe(
        student_folder,
        {"only": {"model": str(teacher_folder), "reward_scale": scale}},
        reference={"model": str(reference_folder)},
    )
    bench = Bench.of(recipe)
    first = make_rollouts(recipe, bench.student, ["only"], [1])[0]
    update = bench.update([replace(first, response_ids=[v]) for v in range(VOCABULARY)])
    with torch.no_grad():
        own, theirs, base = (
            row_logprobs(plain64(folder), first.prompt_ids, [0], 1.0)[0]
            for folder in (student_folder, teacher_folder, reference_folder)
        )
    target = (scale * theirs + (1 - scale) * base).log_softmax(-1)
    exact = (own.exp() * (own - target)).sum()
    one_sample = torch.cat([r.kl_R for r in update.reports]).double()
    assert float(one_sample @ own.exp()) == pytest.approx(float(exact), rel=1e-4)
    assert exact > 1 and float(one_sample.std()) > 0.1


def test_only_and_all_response_tokens_count(student_folder: Path) -> None:
    """End of sequence included, prompt excluded, truncated responses kept: each token's gradient taken alone."""
    recipe = sft_recipe(student_folder, aggregation="seq-mean-token-sum")
    rollouts = make_rollouts(recipe, load(student_folder), [None])
    assert {r.finished for r in rollouts} == {True, False}
    for row, place in [(0, -1), (0, 0), (2, -1), (2, 4)]:
        learner = sft_learner(recipe)
        terms = [TokenTerms(torch.zeros(len(r.response_ids)), 0.0) for r in rollouts]
        terms[row].constant_R[place] = 7.0
        learner.update(rollouts, [None] * len(rollouts), terms)
        chosen = rollouts[row]
        assert (chosen.response_ids[-1] == EOS) == chosen.finished
        model = plain64(student_folder)
        token = chosen.response_ids[place]
        own = row_logprobs(model, chosen.prompt_ids, chosen.response_ids, 1.0)[place, token]
        expected = torch.autograd.grad(-7.0 * own / len(rollouts), list(model.parameters()))
        names = [n for n, _ in model.named_parameters()]
        assert_gradients(first_gradients(learner), dict(zip(names, expected, strict=True)))


def test_gradient_checkpointing_changes_nothing(student_folder: Path, teacher_folder: Path) -> None:
    found = []
    for checkpointing in (False, True):
        recipe = opd_recipe(
            student_folder,
            {"only": {"model": str(teacher_folder)}},
            student={"gradient_checkpointing": checkpointing},
            objective={"estimator": "full"},
        )
        bench = Bench.of(recipe)
        bench.update(make_rollouts(recipe, bench.student, ["only"]))
        found.append(first_gradients(bench.learner))
    assert_gradients(found[1], found[0], tolerance=1e-6)


def test_bfloat16_compute_is_near_and_leaves_float32_weights(
    student_folder: Path, teacher_folder: Path
) -> None:
    losses = []
    for dtype in ("float32", "bfloat16"):
        recipe = opd_recipe(
            student_folder, {"only": {"model": str(teacher_folder)}}, train={"compute_dtype": dtype}
        )
        bench = Bench.of(recipe)
        losses.append(bench.update(make_rollouts(recipe, bench.student, ["only"])).loss)
        assert {p.dtype for p in bench.learner.parameters.values()} == {torch.float32}
        assert {g.dtype for g in first_gradients(bench.learner).values()} == {torch.float32}
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


# --- rollout correction ---------------------------------------------------------------------------------------------


def off_policy(rollouts: list[Rollout], bench: Bench) -> list[Rollout]:
    """Gives rollouts log-probs of an engine that differs: some weights below 1, some above the cap."""
    generator = torch.Generator().manual_seed(5)
    for rollout in rollouts:
        packed = pack([rollout.prompt_ids], [rollout.response_ids], CPU)
        with torch.no_grad():
            own = linear_logprobs(
                bench.student.project(packed), packed.targets_T, bench.recipe.sampler.temperature
            )
        rollout.sampler_logprobs_R = own + 0.8 * torch.randn(len(own), generator=generator)
    return rollouts


def token_truncate(train: Tensor, engine: Tensor) -> Tensor:
    return torch.minimum(train.exp() / engine.exp(), torch.tensor(1.5).double())


def token_mask(train: Tensor, engine: Tensor) -> Tensor:
    ratio = train.exp() / engine.exp()
    return torch.where(ratio > 1.5, 0.0, ratio)


def sequence_truncate(train: Tensor, engine: Tensor) -> Tensor:
    return token_truncate(train.sum(), engine.sum()).expand(len(train))


def sequence_mask(train: Tensor, engine: Tensor) -> Tensor:
    return token_mask(train.sum(), engine.sum()).expand(len(train))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("weights", [token_truncate, token_mask, sequence_truncate, sequence_mask])
def test_off_policy_tokens_are_corrected(
    weights: Weights,
    estimator: str,
    student_folder: Path,
    teacher_folder: Path,
    teacher_llama: Path,
    reference_folder: Path,
    plain_models: dict[str, tuple[PreTrainedModel, PreTrainedModel]],
) -> None:
    level, beyond = weights.__name__.split("_")  # type: ignore[attr-defined]
    recipe = two_teachers(
        student_folder,
        teacher_folder,
        teacher_llama,
        reference_folder,
        objective=ESTIMATORS[estimator],
        correction={"level": level, "beyond": beyond, "cap": 1.5},
        sampler={"temperature": 0.7},
        train={"tokens_per_micro_batch": 90},
    )
    bench = Bench.of(recipe)
    rollouts = off_policy(make_rollouts(recipe, bench.student, ["alpha", "beta"]), bench)
    update = bench.update(rollouts, on_policy=False)
    expected = expected_update(recipe, plain64(student_folder), rollouts, plain_models, weights)
    seen = torch.cat([t.weight for t in expected.tokens])
    assert (seen == (1.5 if beyond == "truncate" else 0.0)).any() and ((seen > 0) & (seen < 1)).any()
    assert_rows([r.correction_R for r in update.reports], [t.weight for t in expected.tokens])
    assert update.loss == pytest.approx(expected.loss, rel=2e-5, abs=1e-5)
    assert_gradients(first_gradients(bench.learner), expected.gradients)


def test_the_second_mini_batch_is_corrected_by_what_the_first_changed(
    student_folder: Path,
    teacher_folder: Path,
    teacher_llama: Path,
    reference_folder: Path,
) -> None:
    recipe = two_teachers(student_folder, teacher_folder, teacher_llama, reference_folder, optim={"lr": 3e-3})
    bench = Bench.of(recipe)
    rollouts = make_rollouts(recipe, bench.student, ["alpha", "beta"])
    before = plain64(student_folder)
    for rollout in rollouts:
        whole = row_logprobs(before, rollout.prompt_ids, rollout.response_ids, 1.0).detach().float()
        rollout.sampler_logprobs_R = whole.gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
    first = bench.update(rollouts[:4], on_policy=True)
    assert all(r.correction_R is None for r in first.reports)
    between = plain64_now(student_folder, bench.student)
    second = bench.update(rollouts[4:], on_policy=False)
    for rollout, report in zip(rollouts[4:], second.reports, strict=True):
        ids = torch.tensor(rollout.response_ids)[:, None]
        own, old = (
            row_logprobs(m, rollout.prompt_ids, rollout.response_ids, 1.0).detach().gather(-1, ids)[:, 0]
            for m in (between, before)
        )
        assert report.correction_R is not None
        assert float((report.correction_R - 1).abs().max()) > 0.01
        assert_rows([report.correction_R], [(own - old).exp().clamp_max(5.0)])


def test_correction_off_means_none(student_folder: Path, teacher_folder: Path) -> None:
    recipe = opd_recipe(student_folder, {"only": {"model": str(teacher_folder)}}, correction={"mode": "off"})
    bench = Bench.of(recipe)
    rollouts = off_policy(make_rollouts(recipe, bench.student, ["only"]), bench)
    assert all(r.correction_R is None for r in bench.update(rollouts, on_policy=False).reports)


# --- SFT ------------------------------------------------------------------------------------------------------------


def sft_learner(recipe: Any, student: Any = None) -> Learner:
    student = student or load(Path(recipe.student.model))
    return Learner(recipe, student, total_steps=recipe.train.steps, aggregation=recipe.aggregation)


def test_sft_is_transformers_own_loss(llama_folder: Path) -> None:
    recipe = sft_recipe(llama_folder, train={"tokens_per_micro_batch": 90})
    learner = sft_learner(recipe)
    rollouts = make_rollouts(recipe, learner.student, [None])
    model = plain64_now(llama_folder, learner.student)
    update = learner.update(rollouts, [None] * len(rollouts), [sft.token_terms(r) for r in rollouts])
    longest = max(len(r.prompt_ids) + len(r.response_ids) for r in rollouts)
    ids = torch.full((len(rollouts), longest), EOS)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for i, rollout in enumerate(rollouts):
        row = torch.tensor([*rollout.prompt_ids, *rollout.response_ids])
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
        labels[i, len(rollout.prompt_ids) : len(row)] = row[len(rollout.prompt_ids) :]
    loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    assert update.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert_gradients(first_gradients(learner), gradients)
    assert all(r.kl_R is None and r.correction_R is None and r.scores is None for r in update.reports)


# --- the optimizer --------------------------------------------------------------------------------------------------


def schedule(folder: Path, total: int, **optim: Any) -> list[float]:
    learner = sft_learner(sft_recipe(folder, optim={"lr": 2.0, **optim}, train={"steps": total}))
    return [learner.lr(update) for update in range(total)]


def test_schedules_by_hand(student_folder: Path) -> None:
    assert schedule(student_folder, 3) == [2.0, 2.0, 2.0]
    assert schedule(student_folder, 4, warmup_steps=2) == [1.0, 2.0, 2.0, 2.0]
    assert schedule(student_folder, 4, schedule="linear") == [2.0, 1.5, 1.0, 0.5]
    assert schedule(student_folder, 6, schedule="linear", warmup_steps=2) == [1.0, 2.0, 2.0, 1.5, 1.0, 0.5]
    half = math.sqrt(0.5)
    assert schedule(student_folder, 4, schedule="cosine") == pytest.approx([2.0, 1 + half, 1.0, 1 - half])
    assert schedule(student_folder, 2, warmup_steps=4) == [0.5, 1.0]


def test_a_step_is_adamw_by_hand(student_folder: Path) -> None:
    """Two steps of Loshchilov and Hutter's Algorithm 2 in float64, with clipping, decay and a warm-up."""
    optim = {
        "lr": 0.01,
        "betas": [0.8, 0.95],
        "eps": 1e-6,
        "weight_decay": 0.1,
        "grad_clip": 0.5,
        "warmup_steps": 2,
    }
    learner = sft_learner(sft_recipe(student_folder, optim=optim))
    rollouts = make_rollouts(learner.recipe, learner.student, [None])  # type: ignore[arg-type]
    model = plain64_now(student_folder, learner.student)
    weights = dict(model.named_parameters())
    mean = {n: torch.zeros_like(p) for n, p in weights.items()}
    square = {n: torch.zeros_like(p) for n, p in weights.items()}
    for step in (1, 2):
        update = learner.update(rollouts, [None] * len(rollouts), [sft.token_terms(r) for r in rollouts])
        terms = [
            -row_logprobs(model, r.prompt_ids, r.response_ids, 1.0).gather(
                -1, torch.tensor(r.response_ids)[:, None]
            )
            for r in rollouts
        ]
        gradients = dict(
            zip(weights, torch.autograd.grad(torch.cat(terms).mean(), list(weights.values())), strict=True)
        )
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        assert norm > 0.5 and update.grad_norm == pytest.approx(norm, rel=1e-4)
        assert update.lr == pytest.approx(0.005 * step)
        with torch.no_grad():
            for name, weight in weights.items():
                gradient = gradients[name] * 0.5 / norm
                mean[name] = 0.8 * mean[name] + 0.2 * gradient
                square[name] = 0.95 * square[name] + 0.05 * gradient**2
                move = (mean[name] / (1 - 0.8**step)) / ((square[name] / (1 - 0.95**step)).sqrt() + 1e-6)
                weight -= update.lr * (move + 0.1 * weight)
    for name, weight in weights.items():
        torch.testing.assert_close(learner.parameters[name].double(), weight.data, rtol=1e-3, atol=3e-5)


def test_gradients_are_clipped_to_the_norm_and_only_then(student_folder: Path) -> None:
    found = {}
    for clip in (NO_CLIP, 0.1):
        learner = sft_learner(sft_recipe(student_folder, optim={"grad_clip": clip}))
        rollouts = make_rollouts(learner.recipe, learner.student, [None])  # type: ignore[arg-type]
        update = learner.update(rollouts, [None] * len(rollouts), [sft.token_terms(r) for r in rollouts])
        found[clip] = (update.grad_norm, first_gradients(learner))
    (norm, whole), (same, clipped) = found[NO_CLIP], found[0.1]
    assert norm == pytest.approx(same) and norm > 0.1
    for name, gradient in clipped.items():
        torch.testing.assert_close(gradient, whole[name] * (0.1 / norm), rtol=1e-4, atol=1e-8)


# --- what is not finite ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_non_finite_losses_and_gradients_stop_before_the_weights(value: float, student_folder: Path) -> None:
    """1e30 makes a finite loss whose gradient norm overflows."""
    recipe = sft_recipe(student_folder, train={"tokens_per_micro_batch": 1})
    learner = sft_learner(recipe)
    rollouts = make_rollouts(recipe, learner.student, [None])
    weights = {n: p.detach().clone() for n, p in learner.parameters.items()}
    terms = [sft.token_terms(r) for r in rollouts]
    terms[3].constant_R[1] = value
    with pytest.raises(NonFinite, match="optimizer step 1") as caught:
        learner.update(rollouts, [None] * len(rollouts), terms)
    assert caught.value.rows == (list(range(len(rollouts))) if value == 1e30 else [3])
    assert learner.updates == 0 and not learner.optimizer.state
    assert all(torch.equal(p, weights[n]) for n, p in learner.parameters.items())
    # whoever goes on without those rows starts from nothing
    learner.update(rollouts, [None] * len(rollouts), [sft.token_terms(r) for r in rollouts])
    fresh = sft_learner(recipe)
    fresh.update(rollouts, [None] * len(rollouts), [sft.token_terms(r) for r in rollouts])
    assert all(torch.equal(p, fresh.parameters[n]) for n, p in learner.parameters.items())


# --- save and load --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA, LORA | {"dropout": 0.3}])
def test_load_goes_on_exactly_where_save_left_off(
    lora: dict[str, Any] | None, student_folder: Path, teacher_folder: Path, tmp_path: Path
) -> None:
    recipe = opd_recipe(
        student_folder,
        {"only": {"model": str(teacher_folder)}},
        student={"lora": lora},
        optim={"warmup_steps": 2, "schedule": "cosine", "lr": 0.01},
        objective={"estimator": "full"},
    )

    def step(bench: Bench, number: int) -> Any:
        torch.manual_seed(number)
        return bench.update(make_rollouts(recipe, bench.student, ["only"]))

    straight = Bench.of(recipe)
    step(straight, 1), step(straight, 2)
    straight.learner.save(tmp_path)
    after_two = student_logprobs(straight.student)
    taken_up = Bench.of(recipe)
    taken_up.learner.load(tmp_path, 2)
    assert same_state(taken_up.learner, straight.learner)
    assert torch.equal(student_logprobs(taken_up.student), after_two)
    for number in (3, 4):
        one, other = step(straight, number), step(taken_up, number)
        assert (one.loss, one.grad_norm, one.lr) == (other.loss, other.grad_norm, other.lr)
        assert same_state(taken_up.learner, straight.learner)
    untouched = Bench.of(recipe)
    assert not torch.equal(student_logprobs(straight.student), student_logprobs(untouched.student))


def student_logprobs(student: Any) -> Tensor:
    packed = pack([[5, 6, 7], [8]], [[9, 10, 11], [12, 13]], CPU)
    with torch.no_grad():
        return linear_logprobs(student.project(packed), packed.targets_T, 1.0)


def same_state(one: Learner, other: Learner) -> bool:
    assert one.updates == other.updates and one.parameters.keys() == other.parameters.keys()
    for name, mine in one.parameters.items():
        theirs = other.parameters[name]
        states = one.optimizer.state[mine], other.optimizer.state[theirs]
        assert states[0].keys() == states[1].keys() == {"step", "exp_avg", "exp_avg_sq"}
        if not torch.equal(mine, theirs) or any(
            not torch.equal(states[0][k], states[1][k]) for k in states[0]
        ):
            return False
    return True


# --- export ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("kind", ["tied", "untied"])
def test_the_exported_student_is_a_plain_hugging_face_folder(
    kind: str,
    lora: dict[str, Any] | None,
    student_folder: Path,
    llama_folder: Path,
    teacher_folder: Path,
    tmp_path: Path,
) -> None:
    folder = {"tied": student_folder, "untied": llama_folder}[kind]
    recipe = opd_recipe(
        folder, {"only": {"model": str(teacher_folder)}}, student={"lora": lora}, optim={"lr": 0.02}
    )
    bench = Bench.of(recipe)
    bench.update(make_rollouts(recipe, bench.student, ["only"]))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    packed = pack([[5]], [[6, 7, 8, 9, 10, 11]], CPU)
    with torch.no_grad():
        before = bench.student.project(packed).logits(slice(None), 1.0)
    out = tmp_path / "student"
    export_student(bench.learner, bench.student.tokenizer, student_card(recipe, 1, None), out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.float32 and not model.training
    with torch.no_grad():
        after = model(input_ids=ids).logits[0]
        initial = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits[0]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert float((after - initial).abs().max()) > 0.1
    assert {p.name for p in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
    }
    assert GenerationConfig.from_pretrained(out).eos_token_id == EOS
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.get_vocab() == bench.student.tokenizer.get_vocab()
    assert tokenizer.chat_template == bench.student.tokenizer.chat_template


def test_a_generation_config_that_transformers_refuses_to_write_is_kept(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """Published models have `temperature` with `do_sample: false`; that must not lose a finished run."""
    folder = make_model(4)
    odd = GenerationConfig(eos_token_id=[EOS, 0], do_sample=False)
    odd.temperature = 0.6
    odd.to_json_file(folder / "generation_config.json")
    student = load(folder)
    export_model(student, ALONE, tmp_path)
    kept = GenerationConfig.from_pretrained(tmp_path)
    assert (kept.eos_token_id, kept.do_sample, kept.temperature) == ([EOS, 0], False, 0.6)
