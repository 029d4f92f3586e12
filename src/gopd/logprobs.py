"""Log-probs and losses through the LM head, chunk by chunk: no `[tokens, vocabulary]` tensor is ever kept.

The head is the widest matrix of a language model, and its logits are the largest tensor by far. Everything here
walks over chunks of tokens that fit `CHUNK_BYTES` of float32 logits and uses each chunk up: scoring keeps only
the sampled token's log-prob; the training loss computes its gradient in closed form in the *forward* pass, so
logits are computed once and never recomputed for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gopd.objective import wide

CHUNK_BYTES = 40 * 2**20
"""Size of one float32 array of a chunk; the loss needs three to five of them at a time."""


def token_chunks(tokens: int, vocabulary: int) -> Iterator[slice]:
    """Slices of at most CHUNK_BYTES of float32 logits that cover `tokens`."""
    size = max(1, CHUNK_BYTES // (4 * vocabulary))
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


class Scratch:
    """Arrays [C, V] that every chunk of a pass uses again, as memory that is new to a process is slow to get."""

    def __init__(self) -> None:
        self._arrays: dict[str, Tensor] = {}

    def array(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """The array of that name, in float32 (float64 for float64) and with whatever is left in it."""
        rows, vocabulary = shape
        held = self._arrays.get(name)
        if held is None or len(held) < rows or held.shape[1] != vocabulary:
            dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
            held = self._arrays[name] = torch.empty(rows, vocabulary, dtype=dtype, device=like.device)
        return held[:rows]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of a pass: the student's log-probs and probabilities there, [C, V] each, free to be overwritten."""

    tokens: slice
    logprobs_CV: Tensor
    probs_CV: Tensor
    scratch: Scratch


ChunkLoss = Callable[[Chunk], tuple[Tensor, Tensor]]
"""A chunk → (weighted loss [C], its gradient w.r.t. the logits [C, V])."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Final hidden states [T, D] and the head [V, D] that turns them into logits."""

    hidden_TD: Tensor
    head_VD: Tensor

    def logits(self, tokens: slice, temperature: float, out: Tensor | None = None) -> Tensor:
        """Logits [C, V] of some tokens, in float32, divided by the temperature; written to `out` where it is given."""
        hidden_CD, head_VD = self.hidden_TD[tokens], self.head_VD.to(self.hidden_TD.dtype)
        if out is None:
            logits_CV = wide(hidden_CD @ head_VD.T)
        elif out.dtype == hidden_CD.dtype:
            logits_CV = torch.mm(hidden_CD, head_VD.T, out=out)
        else:
            logits_CV = out.copy_(hidden_CD @ head_VD.T)
        return logits_CV if temperature == 1 else logits_CV.div_(temperature)

    @torch.no_grad()
    def logprobs(self, tokens: slice, temperature: float, scratch: Scratch, name: str) -> Tensor:
        """Log-probs [C, V] of some tokens in the scratch array `name`; the array `logits` is overwritten."""
        shape = (len(self.hidden_TD[tokens]), len(self.head_VD))
        logits_CV = self.logits(tokens, temperature, scratch.array("logits", shape, self.hidden_TD))
        return torch.log_softmax(logits_CV, -1, out=scratch.array(name, shape, self.hidden_TD))


def chunks(projection: Projection, temperature: float) -> Iterator[Chunk]:
    """The student's tokens chunk by chunk; each one is overwritten by the next."""
    scratch = Scratch()
    for tokens in token_chunks(len(projection.hidden_TD), len(projection.head_VD)):
        logprobs_CV = projection.logprobs(tokens, temperature, scratch, "own")
        probs_CV = torch.exp(logprobs_CV, out=scratch.array("probs", logprobs_CV.shape, logprobs_CV))
        yield Chunk(tokens, logprobs_CV, probs_CV, scratch)


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
    def chunk(
        self, ids_C: Tensor, tokens: slice, temperature: float, scratch: Scratch
    ) -> tuple[Tensor, TokenScores]:
        """log q_λ of some tokens [C, V], in a scratch array, and the numbers of their sampled ids.

        The arrays `logits`, `teacher` and `reference` are overwritten.
        """
        teacher_CV = self.teacher.logprobs(tokens, temperature, scratch, "teacher")
        teacher_C = _pick(teacher_CV, ids_C)
        if self.reference is None:
            return teacher_CV, TokenScores(teacher_C, None, None)
        reference_CV = self.reference.logprobs(tokens, temperature, scratch, "reference")
        reference_C = _pick(reference_CV, ids_C)
        if self.reward_scale == 0:  # the teacher cancels, and would not where it says −inf
            mixed_CV = reference_CV
        else:
            mixed_CV = teacher_CV.mul_(self.reward_scale).add_(reference_CV, alpha=1 - self.reward_scale)
        target_CV = torch.log_softmax(mixed_CV, -1, out=scratch.array("logits", mixed_CV.shape, mixed_CV))
        partition_C = mixed_CV.amax(-1) - target_CV.amax(-1)
        return target_CV, TokenScores(teacher_C, reference_C, partition_C)

    def score(self, ids_T: Tensor, temperature: float) -> TokenScores:
        """Log-probs of `ids_T` under teacher and reference, and log Z_λ, in chunks."""
        scratch = Scratch()
        parts = [
            self.chunk(ids_T[tokens], tokens, temperature, scratch)[1]
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
    scratch = Scratch()
    parts = [
        _pick(projection.logprobs(tokens, temperature, scratch, "own"), ids_T[tokens])
        for tokens in token_chunks(len(ids_T), projection.head_VD.shape[0])
    ]
    return torch.cat(parts) if parts else ids_T.new_zeros(0, dtype=torch.float32)


def linear_loss(projection: Projection, chunk_loss: ChunkLoss, temperature: float) -> Tensor:
    """Sum of `chunk_loss` over all tokens, differentiable in the hidden states and (if it wants) the head.

    `chunk_loss` is called once per chunk, in order. Its gradient is applied at once; the backward pass only multiplies.
    """
    return _LinearLoss.apply(projection.hidden_TD, projection.head_VD, chunk_loss, temperature)  # type: ignore[no-any-return, no-untyped-call]


class _LinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, head_VD: Tensor, chunk_loss: ChunkLoss, temperature: float
    ) -> Tensor:
        projection = Projection(hidden_TD, head_VD.to(hidden_TD.dtype))
        hidden_grad_TD = torch.empty_like(hidden_TD)
        width = torch.promote_types(head_VD.dtype, torch.float32)  # sums over chunks are never in bfloat16
        head_grad_VD = torch.zeros_like(head_VD, dtype=width) if ctx.needs_input_grad[1] else None
        total = torch.zeros((), dtype=torch.float64, device=hidden_TD.device)
        for chunk in chunks(projection, temperature):
            loss_C, grad_CV = chunk_loss(chunk)
            total += loss_C.sum(dtype=torch.float64)
            grad_CV = (grad_CV if temperature == 1 else grad_CV.div_(temperature)).to(hidden_TD.dtype)
            torch.mm(grad_CV, projection.head_VD, out=hidden_grad_TD[chunk.tokens])
            if head_grad_VD is not None:
                if head_grad_VD.dtype == grad_CV.dtype:
                    head_grad_VD.addmm_(grad_CV.T, hidden_TD[chunk.tokens])
                else:
                    head_grad_VD += grad_CV.T @ hidden_TD[chunk.tokens]
        head_grad_VD = None if head_grad_VD is None else head_grad_VD.to(head_VD.dtype)
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
