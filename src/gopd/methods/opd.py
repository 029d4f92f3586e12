"""Generalized on-policy distillation (Yang et al. 2026, arXiv 2602.12125): λ = 1 is OPD, λ > 1 ExOPD."""

from __future__ import annotations

import torch

from gopd.objective import advantages
from gopd.sections import ObjectiveSection
from gopd.types import Rollout, Scores, TokenTerms


def needs_vocabulary(objective: ObjectiveSection) -> bool:
    """Whether the estimator compares whole distributions, and so wants hidden states rather than log-probs."""
    return objective.estimator != "sampled" or objective.control_variate


def token_terms(rollout: Rollout, scores: Scores, reward: float, *, corrected: bool) -> TokenTerms:
    """Terms of one rollout: A_t = λℓ_T + (1−λ)ℓ_R − ℓ_S, plus `reward` at every token.

    For scores that hold hidden states the model part is left to the estimator. `corrected`: the sampler's log-probs
    may differ from those of the weights being updated.
    """
    constant_R = torch.zeros(len(rollout.response_ids))
    if scores.teacher_logprobs_R is not None:
        constant_R = advantages(
            constant_R, scores.teacher_logprobs_R, scores.reference_logprobs_R, scores.reward_scale
        )
    return TokenTerms(constant_R + reward, 1.0, rollout.sampler_logprobs_R if corrected else None)
