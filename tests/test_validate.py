"""Held-out figures: by hand, by brute force, and against exact binomial quantiles."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import VOCABULARY, MakeModel
from gopd import logprobs, views
from gopd.estimates import bootstrap_interval
from gopd.sections import View
from gopd.types import Rollout
from gopd.validate import (
    Domain,
    Validation,
    accuracy_interval,
    exact_kl,
    kl_interval,
    summarize,
)
from tiny import Bench, make_prompt, make_rollouts, opd_recipe, plain64, plain64_now, row_logprobs

HINT = View(template="{prompt} ({solution})")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens of logits at a time, so that rows straddle chunks."""
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 5 * 4 * VOCABULARY)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_exact_kl_is_brute_force_over_the_vocabulary(
    temperature: float,
    student_folder: Path,
    teacher_folder: Path,
    reference_folder: Path,
    make_model: MakeModel,
) -> None:
    """Two routes with their own λ and view, rows out of order, and a student that has moved off its start."""
    llama = make_model(12, "llama")
    teachers = {
        "ex": {"model": str(teacher_folder), "reward_scale": 1.5, "view": HINT.model_dump()},
        "plain": {"model": str(llama), "reward_scale": 1.0},
    }
    recipe = opd_recipe(
        student_folder,
        teachers,
        reference={"model": str(reference_folder)},
        optim={"lr": 0.01},
        train={"tokens_per_micro_batch": 120},
    )
    bench = Bench.of(recipe)
    rollouts = make_rollouts(recipe, bench.student, ["plain", "ex", "ex"])
    bench.update(rollouts)
    found = exact_kl(bench.learner, bench.scorer, rollouts, temperature, 30)
    student = plain64_now(student_folder, bench.student)
    for rollout, kl in zip(rollouts, found, strict=True):
        folder, view, scale = {"ex": (teacher_folder, HINT, 1.5), "plain": (llama, View(), 1.0)}[
            rollout.prompt.route or ""
        ]
        seen = views.render(view, [rollout.prompt], bench.student.tokenizer)[0]
        with torch.no_grad():
            own = row_logprobs(student, rollout.prompt_ids, rollout.response_ids, temperature)
            theirs = row_logprobs(plain64(folder), seen, rollout.response_ids, temperature)
            base = row_logprobs(
                plain64(reference_folder), rollout.prompt_ids, rollout.response_ids, temperature
            )
        target = (scale * theirs + (1 - scale) * base).exp()
        target = target / target.sum(-1, keepdim=True)
        expected = (own.exp() * (own - target.log())).sum()
        assert kl == pytest.approx(float(expected), rel=1e-4)
        assert kl > 0.1


def test_exact_kl_is_zero_where_student_and_target_agree(student_folder: Path) -> None:
    bench = Bench.of(opd_recipe(student_folder, {"self": {"model": str(student_folder)}}))
    rollouts = make_rollouts(bench.recipe, bench.student, ["self"])
    assert exact_kl(bench.learner, bench.scorer, rollouts, 1.0, 30) == pytest.approx([0.0] * 7, abs=1e-5)
    assert all(p.grad is None for p in bench.student.module.parameters())


def row(index: int, source: str, length: int, reward: float | None, finished: bool = True) -> Rollout:
    prompt = make_prompt(index, "x", None, source)
    return Rollout(prompt, 0, [1], [2] * length, None, finished, "", reward)


def test_figures_by_hand() -> None:
    rollouts = [
        row(0, "math", 4, 1.0),
        row(1, "code", 3, 0.0),
        row(0, "math", 6, 0.0, finished=False),
        row(2, "math", 10, 0.0),
        row(3, "prose", 5, None, finished=False),
        row(2, "math", 20, 0.0, finished=False),
    ]
    result = summarize(30, "student", rollouts, [4.0, 9.0, 2.0, 1.0, 2.5, 3.0])
    assert (result.step, result.model, list(result.domains)) == (30, "student", ["code", "math", "prose"])
    math_ = result.domains["math"]
    assert (math_.problems, math_.samples, math_.accuracy) == (2, 4, 0.25)
    assert (math_.tokens, math_.truncated) == (10.0, 0.5)
    assert math_.kl_to_target == pytest.approx((4 + 2 + 1 + 3) / 40)
    assert (math_.low, math_.high) == (0.0, 0.5)
    code = result.domains["code"]
    assert (code.problems, code.samples, code.accuracy, code.low, code.high) == (1, 1, 0.0, 0.0, 0.0)
    assert (code.tokens, code.truncated, code.kl_to_target) == (3.0, 0.0, 3.0)
    prose = result.domains["prose"]
    assert (prose.accuracy, prose.low, prose.high, prose.truncated) == (None, None, None, 1.0)
    assert result.score() == 0.125
    assert summarize(0, "teacher a", rollouts, [None] * len(rollouts)).domains["math"].kl_to_target is None


def test_accuracy_weighs_problems_not_samples() -> None:
    """One problem sampled three times counts as much as one sampled once."""
    rows = [row(0, "math", 1, r) for r in (1.0, 1.0, 1.0)] + [row(1, "math", 1, 0.0)]
    assert accuracy_interval(rows)[0] == 0.5
    assert accuracy_interval([*rows, row(2, "math", 1, None)])[0] == 0.5
    assert accuracy_interval([row(0, "math", 1, None)]) == (None, None, None)


def test_the_kl_interval_is_that_of_plain_resampling_of_problems() -> None:
    generator = np.random.default_rng(6)
    lengths, kls = generator.integers(1, 90, size=60), generator.gamma(2.0, size=60)
    rows = [row(i // 2, "math", int(n), None) for i, n in enumerate(lengths)]
    mean, low, high = kl_interval(rows, list(kls))
    assert mean == pytest.approx(kls.sum() / lengths.sum())
    pairs = np.stack([kls, lengths]).reshape(2, 30, 2).sum(-1)
    drawn = pairs[:, generator.integers(30, size=(20_000, 30))].sum(-1)
    expected = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    assert (low, high) == pytest.approx(tuple(expected), rel=0.03)
    assert kl_interval(rows, list(kls)) == (mean, low, high)
    assert kl_interval([row(3, "x", 4, None)], [2.0]) == (0.5, 0.5, 0.5)


def test_score_without_verifiers_is_minus_the_kl() -> None:
    figures = Domain(1, 1, None, None, None, 1.0, 0.0, 0.5)
    domains = {"a": figures, "b": replace(figures, kl_to_target=1.5)}
    assert Validation(0, "student", domains).score() == -1.0
    assert Validation(0, "s", {"a": replace(figures, kl_to_target=None)}).score() == float("-inf")
    mixed = {"a": figures, "b": replace(figures, accuracy=0.7, low=0.5, high=0.9)}
    assert Validation(0, "student", mixed).score() == 0.7


def test_an_entry_survives_json() -> None:
    result = summarize(3, "student", [row(0, "math", 4, 1.0), row(1, "prose", 4, None)], [0.5, 1.0])
    assert Validation.from_entry(json.loads(json.dumps(result.entry()))) == result
    assert [f.name for f in dataclasses.fields(Domain)] == list(result.entry()["domains"]["math"])


def binomial_quantiles(n: int, p: float) -> tuple[float, float]:
    """Smallest k/n with P(K ≤ k) ≥ 2.5% and ≥ 97.5%: what resampling n zeros and ones tends to."""
    logs = [
        math.lgamma(n + 1)
        - math.lgamma(k + 1)
        - math.lgamma(n - k + 1)
        + k * math.log(p)
        + (n - k) * math.log(1 - p)
        for k in range(n + 1)
    ]
    cumulative = np.cumsum(np.exp(logs))
    low, high = (int(np.searchsorted(cumulative, q)) for q in (0.025, 0.975))
    return low / n, high / n


@pytest.mark.parametrize(("n", "right"), [(10, 3), (50, 25), (200, 190), (1319, 700)])
def test_the_interval_of_zeros_and_ones_is_the_exact_binomial_one(n: int, right: int) -> None:
    low, high = bootstrap_interval(np.array([1.0] * right + [0.0] * (n - right)))
    exact_low, exact_high = binomial_quantiles(n, right / n)
    assert abs(low - exact_low) <= 1.001 / n and abs(high - exact_high) <= 1.001 / n


def test_the_interval_of_a_mean_is_that_of_plain_resampling() -> None:
    values = np.random.default_rng(3).gamma(1.0, size=40)
    generator = np.random.default_rng(4)
    means = values[generator.integers(40, size=(20_000, 40))].mean(-1)
    expected = np.quantile(means, [0.025, 0.975])
    assert bootstrap_interval(values) == pytest.approx(tuple(expected), rel=0.03)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values[::-1]) == bootstrap_interval(values)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    draws = (generator.random((200, 100)) < 0.4).astype(float)
    covered = [low <= 0.4 <= high for low, high in map(bootstrap_interval, draws)]
    assert 0.89 <= sum(covered) / len(covered) <= 0.99


def test_intervals_that_have_no_width() -> None:
    assert bootstrap_interval(np.array([1.0])) == (1.0, 1.0)
    assert bootstrap_interval(np.zeros(30)) == (0.0, 0.0)
    assert bootstrap_interval(np.ones(30)) == (1.0, 1.0)
