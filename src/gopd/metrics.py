"""One step's numbers: what goes into `metrics.jsonl` and to the trackers."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from gopd.learner import Update
from gopd.memory import peak_memory_gb, restart_peak
from gopd.methods.batch import Batch
from gopd.recipe import SampledRecipe
from gopd.types import Rollout, TokenReport


class Clock:
    """Seconds, tokens and peak memory per phase of a step.

    With `memory_by_phase` free memory is given back before each phase, so that its peak is its own (this costs some
    time); otherwise a peak is that of the process so far.
    """

    def __init__(self, *, memory_by_phase: bool = False) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.tokens: dict[str, int] = defaultdict(int)
        self.peak_gb: dict[str, float] = {}
        self._memory_by_phase = memory_by_phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time inside to a phase."""
        if self._memory_by_phase:
            restart_peak()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start
            self.peak_gb[name] = peak_memory_gb()

    def metrics(self) -> dict[str, float]:
        """`seconds/PHASE`, `tokens_per_second/PHASE` where tokens were counted, and `memory/peak_gb`."""
        rates = {
            f"tokens_per_second/{n}": t / self.seconds[n] for n, t in self.tokens.items() if self.seconds[n]
        }
        seconds = {f"seconds/{n}": s for n, s in self.seconds.items()}
        return seconds | rates | {"memory/peak_gb": max(self.peak_gb.values())}


def step_metrics(batch: Batch, updates: Sequence[Update], staleness: float = 0) -> dict[str, float]:
    """Figures of one step: losses, advantages and gaps per teacher, groups, lengths, rewards per data source.

    Where nothing was learned from any rollout, those of the loss are left out. `staleness` is how many steps older the
    weights that sampled are than those that the step begins with, on average over tokens.
    """
    rollouts = batch.rollouts
    reports = [report for update in updates for report in update.reports if report is not None]
    lengths = [len(r.response_ids) for r in rollouts]
    figures: dict[str, float] = {}
    if reports:
        figures |= {
            "loss": _mean([u.loss for u in updates]),
            "grad_norm": _mean([u.grad_norm for u in updates]),
            "lr": updates[-1].lr,
            "entropy": _mean_of([r.entropy_R for r in reports]),
        }
    figures |= {
        "response_tokens/mean": _mean(lengths),
        "response_tokens/max": max(lengths),
        "truncated": _mean([not r.finished for r in rollouts]),
    }
    if batch.recipe.train.max_staleness:
        figures["staleness"] = staleness
    figures |= _teacher_metrics(reports) | _correction_metrics(reports) | _reward_metrics(batch, reports)
    for source in sorted({r.prompt.data_source for r in rollouts}):
        rewards = [r.reward for r in rollouts if r.prompt.data_source == source and r.reward is not None]
        if rewards:
            figures[f"reward/{source}"] = _mean(rewards)
    return figures


def _teacher_metrics(reports: Sequence[TokenReport]) -> dict[str, float]:
    kls = [r.kl_R for r in reports if r.kl_R is not None]
    figures = {"kl_to_target": _mean_of(kls)} if kls else {}
    routes = {r.scores.route for r in reports if r.scores is not None}
    for route in sorted(route for route in routes if route is not None):
        mine = [r for r in reports if r.scores is not None and r.scores.route == route]
        advantage_T = torch.cat([r.advantage_R for r in mine])
        figures[f"teacher/{route}/advantage_mean"] = float(advantage_T.mean())
        figures[f"teacher/{route}/advantage_std"] = float(advantage_T.std(correction=0))
        gaps = [_gap(r) for r in mine]
        known = [g for g in gaps if g is not None]
        if known:
            figures[f"teacher/{route}/reference_gap"] = float(torch.cat(known).mean())
    return figures


def _gap(report: TokenReport) -> Tensor | None:
    scores = report.scores
    if scores is None or scores.reference_logprobs_R is None or scores.teacher_logprobs_R is None:
        return None
    return scores.teacher_logprobs_R - scores.reference_logprobs_R


def _reward_metrics(batch: Batch, reports: Sequence[TokenReport]) -> dict[str, float]:
    """Shares of groups without a difference and of clipped tokens, importance ratios, KL to the reference."""
    figures = {}
    spread: dict[int, bool] = {}
    for rollout, advantage in zip(batch.rollouts, batch.advantages, strict=True):
        if isinstance(batch.recipe, SampledRecipe) and batch.recipe.learns_from_reward(rollout.prompt.route):
            spread[rollout.prompt.index] = spread.get(rollout.prompt.index, False) or advantage != 0
    if spread:
        figures["groups/uniform"] = _mean([not differs for differs in spread.values()])
    ratios = [r.ratio_R for r in reports if r.ratio_R is not None]
    if ratios:
        figures |= {"ratio/mean": _mean_of(ratios), "ratio/max": float(torch.cat(ratios).max())}
        figures["ratio/clipped"] = _mean_of([r.clipped_R.float() for r in reports if r.clipped_R is not None])
    kls = [r.reference_kl_R for r in reports if r.reference_kl_R is not None]
    if kls:
        figures["kl_to_reference"] = _mean_of(kls)
    return figures


def gap_metrics(rollouts: Sequence[Rollout], reports: Sequence[TokenReport | None]) -> dict[str, float]:
    """How far the log-probs of the step's first pass are from the sampler's, ℓ_train − ℓ_sampler: mean and largest.

    Two engines differ by rounding; weights that sampled earlier differ by what was learned since. `reports` has the
    first one of every rollout.
    """
    pairs = [
        (report.student_logprobs_R, rollout.sampler_logprobs_R)
        for rollout, report in zip(rollouts, reports, strict=True)
        if report is not None and rollout.sampler_logprobs_R is not None
    ]
    if not pairs:
        return {}
    gap_T = torch.cat([own_R - sampler_R.cpu() for own_R, sampler_R in pairs])
    return {"sampler_gap/mean": float(gap_T.mean()), "sampler_gap/max": float(gap_T.abs().max())}


def _correction_metrics(reports: Sequence[TokenReport]) -> dict[str, float]:
    weights = [r.correction_R for r in reports if r.correction_R is not None]
    if not weights:
        return {}
    weights_T = torch.cat(weights)
    return {
        "correction/mean": float(weights_T.mean()),
        "correction/min": float(weights_T.min()),
        "correction/max": float(weights_T.max()),
    }


def _mean_of(rows: Sequence[Tensor]) -> float:
    """Over all tokens."""
    return float(torch.cat(list(rows)).mean())


def _mean(values: Sequence[float | int | bool]) -> float:
    return sum(values) / len(values)
