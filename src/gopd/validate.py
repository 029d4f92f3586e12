"""Held-out measurement: accuracy per domain with intervals, response lengths, and the exact KL to the target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gopd.estimates import RESAMPLES, bootstrap_interval
from gopd.recipe import SampledRecipe
from gopd.roles import Learner, Scorer
from gopd.types import Rollout


@dataclass(frozen=True, slots=True)
class Domain:
    """Figures of one data source. `accuracy` is None without a verifier; `low`, `high` its 95% interval.

    `kl_to_target` is the mean over response tokens of KL(S ‖ q_λ), over the whole vocabulary, in nats; `kl_low`
    and `kl_high` its 95% interval.
    """

    problems: int
    samples: int
    accuracy: float | None
    low: float | None
    high: float | None
    tokens: float
    truncated: float
    kl_to_target: float | None
    kl_low: float | None = None
    kl_high: float | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """One model measured at one step."""

    step: int
    model: str
    domains: Mapping[str, Domain]

    def score(self) -> float:
        """What `best` is judged by: mean accuracy over domains, or without verifiers minus the mean KL."""
        accuracies = [d.accuracy for d in self.domains.values() if d.accuracy is not None]
        if accuracies:
            return sum(accuracies) / len(accuracies)
        kls = [d.kl_to_target for d in self.domains.values() if d.kl_to_target is not None]
        kl = sum(kls) / len(kls) if kls else math.inf
        return -kl if math.isfinite(kl) else -math.inf

    def entry(self) -> dict[str, Any]:
        """As a line of `validation.jsonl`."""
        return asdict(self)

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> Validation:
        """Back from a line of `validation.jsonl`."""
        return cls(entry["step"], entry["model"], {k: Domain(**v) for k, v in entry["domains"].items()})


def summarize(
    step: int, model: str, rollouts: Sequence[Rollout], kl_sums: Sequence[float | None]
) -> Validation:
    """Figures per data source. `kl_sums` is each rollout's sum over tokens, as from `exact_kl`, or None."""
    domains = {}
    for source in sorted({r.prompt.data_source for r in rollouts}):
        rows = [i for i, r in enumerate(rollouts) if r.prompt.data_source == source]
        mine = [rollouts[i] for i in rows]
        tokens = sum(len(r.response_ids) for r in mine)
        accuracy, low, high = accuracy_interval(mine)
        known = [(rollouts[i], kl) for i in rows if (kl := kl_sums[i]) is not None]
        kl, kl_low, kl_high = kl_interval(*zip(*known, strict=True)) if known else (None, None, None)
        domains[source] = Domain(
            problems=len({r.prompt.index for r in mine}),
            samples=len(mine),
            accuracy=accuracy,
            low=low,
            high=high,
            tokens=tokens / len(mine),
            truncated=sum(not r.finished for r in mine) / len(mine),
            kl_to_target=kl,
            kl_low=kl_low,
            kl_high=kl_high,
        )
    return Validation(step, model, domains)


def silent_domains(recipe: SampledRecipe, rollouts: Sequence[Rollout]) -> list[str]:
    """Data sources that rewards should teach, but whose rollouts have none: not one is right."""
    rewards: dict[str, list[float]] = {}
    for rollout in rollouts:
        if rollout.reward is not None and recipe.learns_from_reward(rollout.prompt.route):
            rewards.setdefault(rollout.prompt.data_source, []).append(rollout.reward)
    return sorted(source for source, found in rewards.items() if not any(found))


def accuracy_interval(rollouts: Sequence[Rollout]) -> tuple[float | None, float | None, float | None]:
    """Mean reward with a 95% bootstrap interval over problems (fixed seed); None without rewards."""
    per_problem: dict[int, list[float]] = {}
    for rollout in rollouts:
        if rollout.reward is not None:
            per_problem.setdefault(rollout.prompt.index, []).append(rollout.reward)
    if not per_problem:
        return None, None, None
    means = np.array([sum(v) / len(v) for v in per_problem.values()])
    low, high = bootstrap_interval(means)
    return float(means.mean()), low, high


def kl_interval(
    rollouts: Sequence[Rollout], kl_sums: Sequence[float]
) -> tuple[float, float | None, float | None]:
    """Mean KL per token, Σ kl / Σ tokens, with a 95% bootstrap interval over problems (fixed seed).

    There is no interval where a KL is not finite.
    """
    problems = sorted({r.prompt.index for r in rollouts})
    place = {index: i for i, index in enumerate(problems)}
    kl_B, tokens_B = np.zeros(len(problems)), np.zeros(len(problems))
    for rollout, kl in zip(rollouts, kl_sums, strict=True):
        kl_B[place[rollout.prompt.index]] += kl
        tokens_B[place[rollout.prompt.index]] += len(rollout.response_ids)
    if not np.isfinite(kl_B).all():
        return float(kl_B.sum() / tokens_B.sum()), None, None
    generator, ratios = np.random.default_rng(0), list[float]()
    for _ in range(RESAMPLES // 100):  # in parts: a draw holds one count per problem
        times = generator.multinomial(len(problems), np.full(len(problems), 1 / len(problems)), size=100)
        ratios += (times @ kl_B / (times @ tokens_B)).tolist()
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(kl_B.sum() / tokens_B.sum()), float(low), float(high)


KL_BATCH = 4
"""Micro-batches whose hidden states are there at a time."""


def exact_kl(
    learner: Learner,
    scorer: Scorer,
    rollouts: Sequence[Rollout],
    temperature: float,
    budget: int,
    *,
    by_route: bool = False,
) -> list[float | None]:
    """Σ_t KL(S ‖ q_λ) of each rollout under its own route, over the whole vocabulary; None without a teacher.

    With method grpo KL(S ‖ R), to the reference. `budget` is the size of a micro-batch in tokens. `by_route`: one route
    after the other, for teachers that take turns in memory.
    """
    sums: list[float | None] = [None] * len(rollouts)
    groups: dict[str | None, list[int]] = {}
    for i, rollout in enumerate(rollouts):
        groups.setdefault(rollout.prompt.route if by_route else None, []).append(i)
    for group in groups.values():
        for rows in _parts(group, rollouts, KL_BATCH * budget):
            part = [rollouts[i] for i in rows]
            scoring = scorer.begin([r.prompt.route for r in part], temperature=temperature, keep_hidden=True)
            found = learner.kl_to_target(part, scoring.scores(part), temperature)
            for place, kl in found.items():
                sums[rows[place]] = kl
    return sums


def _parts(rows: Sequence[int], rollouts: Sequence[Rollout], tokens: int) -> Iterator[list[int]]:
    """Consecutive rows of about so many tokens together."""
    part, filled = list[int](), 0
    for row in rows:
        part.append(row)
        filled += len(rollouts[row].prompt_ids) + len(rollouts[row].response_ids)
        if filled >= tokens:
            yield part
            part, filled = [], 0
    if part:
        yield part
