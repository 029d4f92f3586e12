"""The loss of one micro-batch: per-token terms (and a target) in, a `ChunkLoss` out, with a record of every token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gopd import objective
from gopd.logprobs import Chunk, Projection, Target, TokenScores, join_scores, linear_logprobs
from gopd.packing import Packed
from gopd.sections import CorrectionSection, ObjectiveSection
from gopd.types import Scores, Surrogate, TokenReport, TokenTerms


@dataclass
class MicroBatchLoss:
    """Called by `linear_loss` once per chunk, in order; afterwards `reports` tells what was seen at every token.

    `weight_T` is each token's factor in the loss of the whole batch. `target` is set for estimators that look at
    the whole vocabulary; `terms` then hold only what is added to the advantage.
    """

    objective: ObjectiveSection
    correction: CorrectionSection
    packed: Packed
    terms: Sequence[TokenTerms]
    scores: Sequence[Scores | None]
    weight_T: Tensor
    target: Target | None
    temperature: float
    _seen: list[_Seen] = field(default_factory=list)
    _sequence_T: Tensor | None = None

    def __post_init__(self) -> None:
        device = self.weight_T.device
        self._constant_T = torch.cat([t.constant_R for t in self.terms]).to(device)
        self._own_T = torch.tensor([t.own for t in self.terms], device=device)[self.packed.row_T]
        self._sampler = self._column([t.sampler_logprobs_R for t in self.terms])
        found = [t.surrogate for t in self.terms]
        own = self.weight_T.new_tensor
        self._surrogates = _Surrogates(found, self.packed.row_T, own, self._column) if any(found) else None

    def _column(self, rows: Sequence[Tensor | None]) -> _Column | None:
        """Numbers of some rows; None when no row has any."""
        if all(row is None for row in rows):
            return None
        lengths, device = self.packed.response_lengths, self.weight_T.device
        filled = [torch.full((n,), math.nan) if r is None else r for r, n in zip(rows, lengths, strict=True)]
        given_T = torch.tensor([row is not None for row in rows], device=device)[self.packed.row_T]
        return _Column(torch.cat(filled).to(device), given_T)

    def prepare(self, projection: Projection) -> None:
        """Sequence-level correction needs whole responses before the first chunk: one more pass of the head."""
        if self._sampler is not None and self.correction.level == "sequence":
            detached = Projection(projection.hidden_TD.detach(), projection.head_VD)
            train_T = linear_logprobs(detached, self.packed.targets_T, self.temperature)
            self._sequence_T = self._correct(train_T, slice(None))

    def __call__(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Weighted loss [C] of a chunk of tokens and its gradient with respect to their logits [C, V]."""
        tokens, logprobs_CV = chunk.tokens, chunk.logprobs_CV
        ids_C = self.packed.targets_T[tokens]
        student_C = logprobs_CV.gather(-1, ids_C.unsqueeze(-1)).squeeze(-1)
        work_CV = chunk.scratch.array("logits", logprobs_CV.shape, logprobs_CV)
        seen = _Seen(student_C, objective.entropy(logprobs_CV, chunk.probs_CV, out=work_CV))
        self._seen.append(seen)
        weight_C = self.weight_T[tokens]
        if self._sampler is not None:
            seen.correction_C = self._correction(student_C, tokens)
            weight_C = weight_C * seen.correction_C
        if self.target is None:
            seen.advantage_C = self._constant_T[tokens] - self._own_T[tokens] * student_C
            pick = (chunk.probs_CV, student_C, ids_C)
            if self._surrogates is None:
                return objective.policy_gradient(*pick, weight_C * seen.advantage_C)
            loss_C, slope_C = self._surrogates(tokens, student_C, seen.advantage_C, seen)
            return weight_C * loss_C, objective.policy_gradient(*pick, weight_C * slope_C)[1]
        return self._against(self.target, chunk, ids_C, weight_C, seen)

    def _against(
        self, target: Target, chunk: Chunk, ids_C: Tensor, weight_C: Tensor, seen: _Seen
    ) -> tuple[Tensor, Tensor]:
        target_CV, seen.scores = target.chunk(ids_C, chunk.tokens, self.temperature, chunk.scratch)
        partition_C = seen.scores.log_partition_T
        partition_C = torch.zeros_like(seen.student_C) if partition_C is None else partition_C
        target_C = target_CV.gather(-1, ids_C.unsqueeze(-1)).squeeze(-1)
        seen.advantage_C = target_C + partition_C - seen.student_C + self._constant_T[chunk.tokens]
        whole = (chunk.logprobs_CV, chunk.probs_CV, target_CV)
        if self.objective.estimator == "sampled":
            mean_C = objective.mean_advantage(*whole, partition_C)
            seen.kl_C = partition_C - mean_C
            seen.advantage_C = seen.advantage_C - mean_C
            return objective.policy_gradient(
                chunk.probs_CV, seen.student_C, ids_C, weight_C * seen.advantage_C
            )
        if self.objective.estimator == "full":
            seen.kl_C, gradient_CV = objective.reverse_kl(*whole)
        else:
            seen.kl_C, gradient_CV = objective.topk_reverse_kl(*whole, self.objective.top_k)
        return weight_C * seen.kl_C, gradient_CV.mul_(weight_C.unsqueeze(-1))

    def _correction(self, student_C: Tensor, tokens: slice) -> Tensor:
        return self._correct(student_C, tokens) if self._sequence_T is None else self._sequence_T[tokens]

    def _correct(self, train: Tensor, tokens: slice) -> Tensor:
        """Weights against the sampler's log-probs; 1 for rows that have none.

        A surrogate's ratio already leads from the weights that sampled to the present ones.
        """
        assert self._sampler is not None
        how = self.correction
        if self._surrogates is not None:
            train = self._surrogates.old(tokens, train)
        weights = objective.correction_weights(
            train,
            self._sampler.values_T[tokens],
            self.packed.row_T[tokens],
            level=how.level,
            cap=how.cap,
            beyond=how.beyond,
        )
        return torch.where(self._sampler.given_T[tokens], weights, 1.0)

    def reports(self) -> list[TokenReport]:
        """What was seen at every token, row by row, on the CPU; scores now have their log-probs."""
        whole = _join(self._seen)
        seen = (whole.student_C, whole.advantage_C, whole.entropy_C, whole.correction_C, whole.kl_C)
        more = (whole.ratio_C, whole.clipped_C, whole.reference_kl_C)
        rows = zip(*map(self._rows, seen), self._filled(whole.scores), *map(self._rows, more), strict=True)
        return [_report(terms, *row) for terms, row in zip(self.terms, rows, strict=True)]

    def _rows(self, column: Tensor | None) -> list[Any]:
        return [None] * len(self.terms) if column is None else self.packed.split(column.cpu())

    def _filled(self, seen: TokenScores | None) -> list[Scores | None]:
        if seen is None:
            return list(self.scores)
        columns = (seen.teacher_logprobs_T, seen.reference_logprobs_T, seen.log_partition_T)
        pieces = zip(
            *([None] * len(self.scores) if c is None else self.packed.split(c.cpu()) for c in columns),
            strict=True,
        )
        return [
            None if score is None else Scores(score.route, score.reward_scale, teacher, reference, partition)
            for score, (teacher, reference, partition) in zip(self.scores, pieces, strict=True)
        ]


@dataclass(frozen=True)
class _Column:
    """Numbers of some rows, token by token, and which tokens have one: a number that is given may be NaN."""

    values_T: Tensor
    given_T: Tensor


@dataclass
class _Seen:
    """What one chunk showed; [C] each."""

    student_C: Tensor
    entropy_C: Tensor
    advantage_C: Tensor | None = None
    correction_C: Tensor | None = None
    kl_C: Tensor | None = None
    scores: TokenScores | None = None
    ratio_C: Tensor | None = None
    clipped_C: Tensor | None = None
    reference_kl_C: Tensor | None = None


class _Surrogates:
    """The surrogates of some rows, token by token, [T] each; the other rows keep the plain policy gradient."""

    def __init__(
        self,
        rows: Sequence[Surrogate | None],
        row_T: Tensor,
        numbers: Callable[[Sequence[float]], Tensor],
        column: Callable[[Sequence[Tensor | None]], _Column | None],
    ) -> None:
        def constant(values: Sequence[float]) -> Tensor:
            return numbers(values)[row_T]

        self._applies_T = constant([row is not None for row in rows]) > 0
        self._low_T = constant([0.0 if row is None else row.clip_low for row in rows])
        self._high_T = constant([0.0 if row is None else row.clip_high for row in rows])
        self._kl_weight_T = constant([0.0 if row is None else row.kl_weight for row in rows])
        self._old = column([None if row is None else row.old_logprobs_R for row in rows])
        self._reference = column([None if row is None else row.reference_logprobs_R for row in rows])

    def old(self, tokens: slice, student_C: Tensor) -> Tensor:
        """Log-probs under the weights that sampled; the student's own where those are the present ones."""
        return _filled_up(self._old, tokens, student_C)

    def __call__(
        self, tokens: slice, student_C: Tensor, advantage_C: Tensor, seen: _Seen
    ) -> tuple[Tensor, Tensor]:
        """Loss and slope −∂loss/∂ℓ_S of a chunk of tokens, before weights."""
        bounds = (self._low_T[tokens], self._high_T[tokens])
        old_C = self.old(tokens, student_C)
        loss_C, slope_C, seen.ratio_C = objective.clipped_surrogate(student_C, old_C, advantage_C, *bounds)
        seen.clipped_C = (slope_C == 0) & (advantage_C != 0)
        if self._reference is not None:
            reference_C = _filled_up(self._reference, tokens, student_C)
            seen.reference_kl_C, kl_slope_C = objective.k3(student_C, reference_C)
            weight_C = self._kl_weight_T[tokens]
            loss_C, slope_C = loss_C + weight_C * seen.reference_kl_C, slope_C + weight_C * kl_slope_C
        applies_C = self._applies_T[tokens]
        plain_C = -advantage_C * student_C
        return torch.where(applies_C, loss_C, plain_C), torch.where(applies_C, slope_C, advantage_C)


def _filled_up(column: _Column | None, tokens: slice, values_C: Tensor) -> Tensor:
    """A column's tokens, with other values where it has none."""
    if column is None:
        return values_C
    return torch.where(column.given_T[tokens], column.values_T[tokens], values_C)


def _join(parts: list[_Seen]) -> _Seen:
    def column(values: list[Tensor | None]) -> Tensor | None:
        present = [v for v in values if v is not None]
        return torch.cat(present) if present else None

    scores = [p.scores for p in parts if p.scores is not None]
    return replace(
        parts[0],
        student_C=torch.cat([p.student_C for p in parts]),
        entropy_C=torch.cat([p.entropy_C for p in parts]),
        advantage_C=column([p.advantage_C for p in parts]),
        correction_C=column([p.correction_C for p in parts]),
        kl_C=column([p.kl_C for p in parts]),
        ratio_C=column([p.ratio_C for p in parts]),
        clipped_C=column([p.clipped_C for p in parts]),
        reference_kl_C=column([p.reference_kl_C for p in parts]),
        scores=join_scores(scores) if scores else None,
    )


def _report(
    terms: TokenTerms,
    student_R: Tensor,
    advantage_R: Tensor,
    entropy_R: Tensor,
    correction_R: Tensor | None,
    kl_R: Tensor | None,
    scores: Scores | None,
    *more: Tensor | None,
) -> TokenReport:
    """Of one row; `more` are ratio, clipped and KL to the reference, which only a surrogate of its kind has."""
    if kl_R is None and scores is not None and scores.teacher_logprobs_R is not None:
        unknown = scores.reward_scale != 1 and scores.log_partition_R is None
        kl_R = None if unknown else _one_sample_kl(student_R, scores)
    report = TokenReport(student_R, advantage_R, entropy_R, correction_R, kl_R, scores)
    if terms.surrogate is None:
        return report
    ratio_R, clipped_R, reference_kl_R = more
    if terms.surrogate.old_logprobs_R is not None:
        report = replace(report, ratio_R=ratio_R, clipped_R=clipped_R)
    return (
        report
        if terms.surrogate.reference_logprobs_R is None
        else replace(report, reference_kl_R=reference_kl_R)
    )


def _one_sample_kl(student_R: Tensor, scores: Scores) -> Tensor:
    """ℓ_S − log q_λ of the sampled token: its mean over S is KL(S ‖ q_λ)."""
    assert scores.teacher_logprobs_R is not None
    constant_R = objective.advantages(
        torch.zeros_like(student_R),
        scores.teacher_logprobs_R,
        scores.reference_logprobs_R,
        scores.reward_scale,
    )
    partition_R = 0.0 if scores.log_partition_R is None else scores.log_partition_R
    return student_R - constant_R + partition_R
