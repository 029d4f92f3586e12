"""Log-probs and losses through the LM head, chunk by chunk: no `[tokens, vocabulary]` tensor is ever kept.

The head is the widest matrix of a language model, and its logits are the largest tensor by far. Everything here
walks over chunks of tokens that fit `CHUNK_BYTES` of float32 logits and uses each chunk up: scoring keeps only
the sampled token's log-prob; the training loss computes its gradient in closed form in the *forward* pass, so
logits are computed once and never recomputed for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gopd.objective import wide

CHUNK_BYTES = 48 * 2**20
"""Size of one float32 logits buffer; the loss holds at most four such buffers at a time."""

ChunkLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""(log-probs of a chunk [C, V], which tokens) → (weighted loss [C], its gradient w.r.t. the logits [C, V])."""


def token_chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    """Slices of at most CHUNK_BYTES of float32 logits that cover `tokens`."""
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


@dataclass(frozen=True, slots=True)
class Projection:
    """Final hidden states [T, D] and the head [V, D] that turns them into logits."""

    hidden_TD: Tensor
    head_VD: Tensor

    def logits(self, tokens: slice, temperature: float) -> Tensor:
        """Logits [C, V] of some tokens, in float32, divided by the temperature."""
        logits_CV = wide(self.hidden_TD[tokens] @ self.head_VD.to(self.hidden_TD.dtype).T)
        return logits_CV if temperature == 1 else logits_CV.div_(temperature)


@dataclass(slots=True)
class TokenScores:
    """Per-token numbers of the sampled ids under teacher and reference; [T] each, None where λ = 1 needs none."""

    teacher_logprobs_T: Tensor
    reference_logprobs_T: Tensor | None
    log_partition_T: Tensor | None


@dataclass(frozen=True, slots=True)
class Target:
    """Teacher and reference of some tokens: where q_λ comes from."""

    teacher: Projection
    reference: Projection | None
    reward_scale: float

    def __post_init__(self) -> None:
        assert (self.reference is None) == (self.reward_scale == 1)

    @property
    def tokens(self) -> int:
        """How many tokens it covers."""
        return len(self.teacher.hidden_TD)

    @torch.no_grad()
    def chunk(self, ids_C: Tensor, tokens: slice, temperature: float) -> tuple[Tensor, TokenScores]:
        """log q_λ of some tokens [C, V], and the numbers of their sampled ids, from one set of logits."""
        teacher_CV = self.teacher.logits(tokens, temperature)
        teacher_norm_C = teacher_CV.logsumexp(-1)
        teacher_C = _pick(teacher_CV, ids_C) - teacher_norm_C
        if self.reference is None:
            return teacher_CV.sub_(teacher_norm_C.unsqueeze(-1)), TokenScores(teacher_C, None, None)
        reference_CV = self.reference.logits(tokens, temperature)
        reference_norm_C = reference_CV.logsumexp(-1)
        reference_C = _pick(reference_CV, ids_C) - reference_norm_C
        scale = self.reward_scale
        mixed_CV = teacher_CV.mul_(scale).add_(reference_CV, alpha=1 - scale)
        mixed_norm_C = mixed_CV.logsumexp(-1)
        partition_C = mixed_norm_C - scale * teacher_norm_C - (1 - scale) * reference_norm_C
        return mixed_CV.sub_(mixed_norm_C.unsqueeze(-1)), TokenScores(teacher_C, reference_C, partition_C)

    def score(self, ids_T: Tensor, temperature: float) -> TokenScores:
        """Log-probs of `ids_T` under teacher and reference, and log Z_λ, in chunks."""
        parts = [
            self.chunk(ids_T[tokens], tokens, temperature)[1]
            for tokens in token_chunks(self.tokens, self.teacher.head_VD.shape[0])
        ]
        return join_scores(parts)


def join_scores(parts: list[TokenScores]) -> TokenScores:
    """Token scores of consecutive chunks, end to end."""
    return TokenScores(
        torch.cat([p.teacher_logprobs_T for p in parts]),
        _join([p.reference_logprobs_T for p in parts]),
        _join([p.log_partition_T for p in parts]),
    )


@torch.no_grad()
def linear_logprobs(projection: Projection, ids_T: Tensor, temperature: float) -> Tensor:
    """Log-prob of each id under softmax(hidden·headᵀ / temperature); float32 [T], no gradient."""
    parts = []
    for tokens in token_chunks(len(ids_T), projection.head_VD.shape[0]):
        logits_CV = projection.logits(tokens, temperature)
        parts.append(_pick(logits_CV, ids_T[tokens]) - logits_CV.logsumexp(-1))
    return torch.cat(parts) if parts else ids_T.new_zeros(0, dtype=torch.float32)


def linear_loss(projection: Projection, chunk_loss: ChunkLoss, temperature: float) -> Tensor:
    """Sum of `chunk_loss` over all tokens, differentiable in the hidden states and (if it wants) the head.

    `chunk_loss` is called once per chunk, in order, with log-probs it may overwrite. Its gradient is applied at
    once; the backward pass only multiplies.
    """
    return _LinearLoss.apply(projection.hidden_TD, projection.head_VD, chunk_loss, temperature)  # type: ignore[no-any-return, no-untyped-call]


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head_VD: Tensor, chunk_loss: ChunkLoss, temperature: float
    ) -> Tensor:
        projection = Projection(hidden_TD, head_VD.to(hidden_TD.dtype))
        hidden_grad_TD = torch.empty_like(hidden_TD)
        head_grad_VD = torch.zeros_like(head_VD) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float64, device=hidden_TD.device)
        for tokens in token_chunks(len(hidden_TD), len(head_VD)):
            logits_CV = projection.logits(tokens, temperature)
            logprobs_CV = logits_CV.sub_(logits_CV.logsumexp(-1, keepdim=True))
            loss_C, grad_CV = chunk_loss(logprobs_CV, tokens)
            total += loss_C.sum(dtype=torch.float64)
            grad_CV = (grad_CV if temperature == 1 else grad_CV.div_(temperature)).to(hidden_TD.dtype)
            torch.mm(grad_CV, projection.head_VD, out=hidden_grad_TD[tokens])
            if head_grad_VD is not None:
                if head_grad_VD.dtype == grad_CV.dtype:
                    head_grad_VD.addmm_(grad_CV.T, hidden_TD[tokens])
                else:
                    head_grad_VD += grad_CV.T @ hidden_TD[tokens]
        ctx.gradients = (hidden_grad_TD, head_grad_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the gradient is used up by the first backward pass"
        # In place: the head's gradient is as large as the head.
        hidden_grad_TD, head_grad_VD = (g if g is None else g.mul_(outputs[0]) for g in gradients)
        return hidden_grad_TD, head_grad_VD, None, None


def _pick(logits_CV: Tensor, ids_C: Tensor) -> Tensor:
    return logits_CV.gather(-1, ids_C.unsqueeze(-1)).squeeze(-1)


def _join(parts: list[Tensor | None]) -> Tensor | None:
    present = [p for p in parts if p is not None]
    return torch.cat(present) if present else None
