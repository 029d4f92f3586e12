"""The mathematics of generalized on-policy distillation: pure functions of tensors, nothing else.

S, T, R are the next-token distributions of student, teacher and reference at one position of a response that
the student sampled; ℓ_S, ℓ_T, ℓ_R the log-probs of the sampled token; λ the reward scale. The objective is

    max  E_{y~S} Σ_t [ λ log(T/R) − KL(S ‖ R) ]

with immediate credit, whose optimum per token is q_λ ∝ T^λ R^(1−λ) (Yang et al. 2026, arXiv 2602.12125,
Eqs. 11–14; their Eq. 14 prints the descent coefficient, here everything is an *advantage*, for ascent).

Three estimators of the gradient of −KL(S ‖ q_λ) are here, each with its gradient in closed form so that a chunk
of logits can be used up and forgotten: `policy_gradient`, `reverse_kl`, `topk_reverse_kl`. They return the
per-token *loss* (for descent) and its gradient with respect to the student's log-softmax inputs, and use up the
tensors [T, V] that they are given, so that they need no memory of their own.

Suffixes: `_T` tokens, `_V` vocabulary. Log-probs are natural logarithms of temperature-scaled logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gopd.sections import Aggregation

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are clamped to ±20 before exp, as published."""


def advantages(
    student_logprobs: Tensor, teacher_logprobs: Tensor, reference_logprobs: Tensor | None, reward_scale: float
) -> Tensor:
    """The G-OPD advantage A = λ(ℓ_T − ℓ_R) − (ℓ_S − ℓ_R) of each sampled token (Eq. 14 with the sign of ascent).

    All tensors have one shape, which is also the result's; no gradient flows. No baseline, no normalisation, no
    clipping. With λ = 1 the reference cancels and may be None; otherwise None is a ValueError.
    """
    if reward_scale < 0:
        raise ValueError(f"reward_scale must be ≥ 0, got {reward_scale}")
    own, teacher = student_logprobs.detach(), teacher_logprobs.detach()
    if reward_scale == 1:
        return teacher - own
    if reference_logprobs is None:
        raise ValueError(f"reward_scale {reward_scale} needs reference_logprobs; only λ = 1 does without")
    reference = reference_logprobs.detach()
    if reward_scale == 0:  # the teacher cancels, whatever it says
        return reference - own
    return (teacher - own) + (reward_scale - 1) * (teacher - reference)


def target_logprobs(teacher_logits: Tensor, reference_logits: Tensor | None, reward_scale: float) -> Tensor:
    """log q_λ = log softmax(λ z_T + (1−λ) z_R) over the last axis, in float32 or wider.

    Logits are already divided by the temperature. `reference_logits` may be None when λ = 1.
    """
    if reward_scale == 1:
        return wide(teacher_logits).log_softmax(-1)
    if reference_logits is None:
        raise ValueError(f"reward_scale {reward_scale} needs reference_logits; only λ = 1 does without")
    if reward_scale == 0:
        return wide(reference_logits).log_softmax(-1)
    return (reward_scale * wide(teacher_logits) + (1 - reward_scale) * wide(reference_logits)).log_softmax(-1)


def wide(values: Tensor) -> Tensor:
    """The values in float32, or as they are when already float64: reductions never run narrower."""
    return values if values.dtype == torch.float64 else values.float()


def policy_gradient(
    probs_TV: Tensor, logprobs_T: Tensor, ids_T: Tensor, advantage_T: Tensor
) -> tuple[Tensor, Tensor]:
    """`sampled`: loss −A·ℓ_S of each sampled token and its gradient A·(S − onehot), written over `probs_TV`.

    `logprobs_T` are the sampled tokens' own. The advantage is a constant. Averaged over ids drawn from S, with A from
    `advantages`, the gradient is that of KL(S ‖ q_λ): the expectation of ∇ℓ_S is zero, so any per-position constant
    in A drops out.
    """
    gradient_TV = probs_TV.mul_(advantage_T.unsqueeze(-1))
    gradient_TV.scatter_add_(-1, ids_T.unsqueeze(-1), -advantage_T.unsqueeze(-1))
    return -advantage_T * logprobs_T, gradient_TV


def reverse_kl(logprobs_TV: Tensor, probs_TV: Tensor, target_TV: Tensor) -> tuple[Tensor, Tensor]:
    """`full`: KL(S ‖ q) per token and its gradient S·(log S − log q − KL).

    Log-probs are normalised. The gradient takes the place of `logprobs_TV`; `target_TV` is overwritten.
    """
    gap_TV = logprobs_TV.sub_(target_TV)
    kl_T = torch.mul(probs_TV, gap_TV, out=target_TV).sum(-1)
    return kl_T, gap_TV.sub_(kl_T.unsqueeze(-1)).mul_(probs_TV)


def topk_reverse_kl(
    logprobs_TV: Tensor, probs_TV: Tensor, target_TV: Tensor, top_k: int
) -> tuple[Tensor, Tensor]:
    """`topk`: reverse KL over the student's k likeliest tokens and one bucket for all others.

    A divergence between two distributions over k+1 outcomes: never negative, zero where they agree, and at most
    `reverse_kl` (data processing inequality). With k ≥ V−1 it *is* `reverse_kl`. The gradient takes the place of
    `logprobs_TV` or `target_TV`; the other is overwritten.
    """
    vocabulary = logprobs_TV.shape[-1]
    if top_k >= vocabulary - 1:
        return reverse_kl(logprobs_TV, probs_TV, target_TV)
    own_TK, index_TK = logprobs_TV.topk(top_k, dim=-1)
    gap_TK = own_TK - target_TV.gather(-1, index_TK)
    own_rest_T1 = _log_rest(logprobs_TV, index_TK)
    tail_gap_T1 = own_rest_T1 - _log_rest(target_TV, index_TK)
    kl_T = torch.linalg.vecdot(own_TK.exp(), gap_TK) + (own_rest_T1.exp() * tail_gap_T1).squeeze(-1)
    bucket_gap_TV = target_TV.copy_(tail_gap_T1).scatter_(-1, index_TK, gap_TK)
    return kl_T, bucket_gap_TV.sub_(kl_T.unsqueeze(-1)).mul_(probs_TV)


def _log_rest(logprobs_TV: Tensor, index_TK: Tensor) -> Tensor:
    """Log-prob of all tokens but the given ones, [T, 1]; uses up `logprobs_TV`.

    Summed from the tokens themselves: 1 − Σ_k would cancel.
    """
    rest_TV = logprobs_TV.scatter_(-1, index_TK, -torch.inf)
    highest_T1 = rest_TV.amax(-1, keepdim=True)
    return rest_TV.sub_(highest_T1).exp_().sum(-1, keepdim=True).log() + highest_T1


def mean_advantage(
    logprobs_TV: Tensor, probs_TV: Tensor, target_TV: Tensor, log_partition_T: Tensor
) -> Tensor:
    """E_S[A] = log Z_λ − KL(S ‖ q_λ), the control variate of `sampled`.

    `target_TV` is log q_λ, normalised; it is overwritten.
    """
    gap_TV = torch.sub(logprobs_TV, target_TV, out=target_TV)
    kl_T = gap_TV.mul_(probs_TV).sum(-1)
    return log_partition_T - kl_T


def entropy(logprobs_TV: Tensor, probs_TV: Tensor, out: Tensor | None = None) -> Tensor:
    """−Σ_v S log S per token, in nats; the summands are left in `out` where it is given."""
    return -torch.mul(logprobs_TV, probs_TV, out=out).sum(-1)


def correction_weights(
    train_logprobs_T: Tensor,
    sampler_logprobs_T: Tensor,
    row_T: Tensor,
    *,
    level: str = "token",
    cap: float = 5.0,
    beyond: str = "truncate",
) -> Tensor:
    """Rollout correction w = min(exp(clamp(ℓ_train − ℓ_sampler, ±20)), cap) per token; no gradient.

    `row_T` numbers the rollout that each token belongs to. `level="sequence"` sums the log-ratio over the whole
    response first, one weight per row. `beyond="mask"` gives weights above `cap` the value 0 instead of `cap`.
    """
    log_ratio_T = train_logprobs_T.detach() - sampler_logprobs_T
    if level == "sequence":
        rows = int(row_T.max()) + 1 if row_T.numel() else 0
        log_ratio_B = log_ratio_T.new_zeros(rows).index_add_(0, row_T, log_ratio_T)
        log_ratio_T = log_ratio_B[row_T]
    weights_T = log_ratio_T.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    if beyond == "mask":
        return weights_T * (weights_T <= cap)
    return weights_T.clamp_max(cap)


def group_advantages(rewards_B: Tensor, group_B: Tensor, *, normalize: bool) -> Tensor:
    """GRPO's advantage of each response [B]: its reward minus its group's mean (Shao et al. 2024, arXiv 2402.03300).

    `group_B` numbers the prompt that a response answers, from 0. With `normalize` divided by the group's standard
    deviation (Bessel's, plus 1e-6, as the published trainers do). Exactly 0 where all rewards of a group are equal.
    """
    groups = int(group_B.max()) + 1

    def total(values_B: Tensor) -> Tensor:
        return values_B.new_zeros(groups).index_add_(0, group_B, values_B)

    count_G = total(torch.ones_like(rewards_B))
    centred_B = rewards_B - (total(rewards_B) / count_G)[group_B]
    highest_G, lowest_G = (
        rewards_B.new_zeros(groups).scatter_reduce_(0, group_B, rewards_B, how, include_self=False)
        for how in ("amax", "amin")
    )
    centred_B = centred_B.masked_fill((highest_G == lowest_G)[group_B], 0)
    if not normalize:
        return centred_B
    deviation_G = (total(centred_B.square()) / (count_G - 1).clamp_min(1)).sqrt()
    return centred_B / (deviation_G[group_B] + 1e-6)


def clipped_surrogate(
    logprobs_T: Tensor, old_logprobs_T: Tensor, advantage_T: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's loss −min(ρA, clip(ρ, 1−low, 1+high)·A) with ρ = exp(ℓ − ℓ_old), per token (Schulman et al. 2017, Eq. 7).

    Also returns its slope −∂loss/∂ℓ, which is ρA and 0 where the clipped side is the smaller, and ρ itself. ℓ_old is of
    the weights that sampled; where those are the ones being updated, ρ = 1 and the slope is A. Two bounds: Yu et al.
    2025, arXiv 2503.14476.
    """
    ratio_T = (logprobs_T - old_logprobs_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    free_T = ratio_T * advantage_T
    held_T = torch.minimum(torch.maximum(ratio_T, 1 - low), 1 + high) * advantage_T
    return -torch.minimum(free_T, held_T), torch.where(free_T <= held_T, free_T, 0.0), ratio_T


def k3(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> tuple[Tensor, Tensor]:
    """exp(δ) − δ − 1 with δ = ℓ_R − ℓ_S, and its slope −∂/∂ℓ_S = exp(δ) − 1, per token (Schulman 2020).

    Never negative; for tokens drawn from S its mean is KL(S ‖ R). As a term of the loss, as GRPO has it, its mean
    gradient is that of KL(R ‖ S), since the drawing is not differentiated.
    """
    gap_T = (reference_logprobs_T - logprobs_T).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.expm1(gap_T) - gap_T, torch.expm1(gap_T)


def aggregation_weights(lengths_B: Tensor, aggregation: Aggregation) -> Tensor:
    """The factor that each token of each row has in the loss of the whole batch. Shape [B], float64.

    `lengths_B` counts the response tokens of every row of the *global* batch, so the loss Σ_rows factor·Σ_tokens
    does not depend on how rows are split into micro-batches or over ranks.
    """
    lengths_B = lengths_B.double()
    if aggregation == "token-mean":
        return torch.full_like(lengths_B, 1 / float(lengths_B.sum()))
    if aggregation == "seq-mean-token-mean":
        return 1 / (lengths_B * len(lengths_B))
    return torch.full_like(lengths_B, 1 / len(lengths_B))
