"""The loss of one micro-batch: per-token terms (and a target) in, a `ChunkLoss` out, with a record of every token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gopd import objective
from gopd.logprobs import Chunk, Projection, Target, TokenScores, join_scores, linear_logprobs
from gopd.packing import Packed
from gopd.recipe import CorrectionSection, ObjectiveSection
from gopd.types import Scores, TokenReport, TokenTerms


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
        sampler = [t.sampler_logprobs_R for t in self.terms if t.sampler_logprobs_R is not None]
        assert len(sampler) in (0, len(self.terms)), "a batch is corrected as a whole or not at all"
        self._sampler_T = torch.cat(sampler).to(device) if sampler else None

    def prepare(self, projection: Projection) -> None:
        """Sequence-level correction needs whole responses before the first chunk: one more pass of the head."""
        if self._sampler_T is not None and self.correction.level == "sequence":
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
        if self._sampler_T is not None:
            seen.correction_C = self._correction(student_C, tokens)
            weight_C = weight_C * seen.correction_C
        if self.target is None:
            seen.advantage_C = self._constant_T[tokens] - self._own_T[tokens] * student_C
            return objective.policy_gradient(chunk.probs_CV, student_C, ids_C, weight_C * seen.advantage_C)
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
        assert self._sampler_T is not None
        how = self.correction
        rows = self.packed.row_T[tokens]
        return objective.correction_weights(
            train, self._sampler_T[tokens], rows, level=how.level, cap=how.cap, beyond=how.beyond
        )

    def reports(self) -> list[TokenReport]:
        """What was seen at every token, row by row, on the CPU; scores now have their log-probs."""
        whole = _join(self._seen)
        cut = self.packed.split
        student, entropy = cut(whole.student_C.cpu()), cut(whole.entropy_C.cpu())
        assert whole.advantage_C is not None
        advantage = cut(whole.advantage_C.cpu())
        none: list[Tensor | None] = [None] * len(student)
        correction = none if whole.correction_C is None else cut(whole.correction_C.cpu())
        kl = none if whole.kl_C is None else cut(whole.kl_C.cpu())
        scores = self._filled(whole.scores)
        return [
            TokenReport(s, a, e, w, _one_sample_kl(s, score) if k is None and score is not None else k, score)
            for s, a, e, w, k, score in zip(student, advantage, entropy, correction, kl, scores, strict=True)
        ]

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


@dataclass
class _Seen:
    """What one chunk showed; [C] each."""

    student_C: Tensor
    entropy_C: Tensor
    advantage_C: Tensor | None = None
    correction_C: Tensor | None = None
    kl_C: Tensor | None = None
    scores: TokenScores | None = None


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
        scores=join_scores(scores) if scores else None,
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
