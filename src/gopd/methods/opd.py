"""Generalized on-policy distillation (Yang et al. 2026, arXiv 2602.12125): λ = 1 is OPD, λ > 1 ExOPD."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gopd.objective import advantages
from gopd.recipe import ObjectiveSection, OpdRecipe
from gopd.types import Rollout, Scores, TokenTerms


def needs_vocabulary(objective: ObjectiveSection) -> bool:
    """Whether the estimator compares whole distributions, and so wants hidden states rather than log-probs."""
    return objective.estimator != "sampled" or objective.control_variate


def token_terms(
    recipe: OpdRecipe, rollouts: Sequence[Rollout], scores: Sequence[Scores], *, on_policy: bool
) -> list[TokenTerms]:
    """Terms of every rollout: A_t = λℓ_T + (1−λ)ℓ_R − ℓ_S, plus the weighted verifier reward if the recipe says so.

    For scores that hold hidden states the model part is left to the estimator. `on_policy` says that the weights
    which sampled the rollouts are the ones being updated: then no correction is made.
    """
    corrected = recipe.correction.mode == "auto" and not on_policy
    terms = []
    for rollout, score in zip(rollouts, scores, strict=True):
        constant_R = torch.zeros(len(rollout.response_ids))
        if score.teacher_logprobs_R is not None:
            constant_R = advantages(
                constant_R, score.teacher_logprobs_R, score.reference_logprobs_R, score.reward_scale
            )
        if rollout.reward is not None:
            constant_R = constant_R + recipe.objective.reward_weight * rollout.reward
        terms.append(TokenTerms(constant_R, 1.0, rollout.sampler_logprobs_R if corrected else None))
    return terms
