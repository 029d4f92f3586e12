"""Group-relative policy optimisation on verifier rewards (Shao et al. 2024, arXiv 2402.03300)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gopd.objective import group_advantages
from gopd.sections import GrpoSection
from gopd.types import Rollout, Scores, Surrogate, TokenTerms


def advantages(section: GrpoSection, rollouts: Sequence[Rollout]) -> list[float]:
    """Of every rollout against the others to its prompt in this batch; every one has a reward."""
    numbers: dict[int, int] = {}
    group_B = torch.tensor([numbers.setdefault(r.prompt.index, len(numbers)) for r in rollouts])
    rewards_B = torch.tensor([r.reward for r in rollouts], dtype=torch.float64)
    found: list[float] = group_advantages(rewards_B, group_B, normalize=section.normalize).tolist()
    return found


def token_terms(
    section: GrpoSection,
    rollout: Rollout,
    advantage: float,
    scores: Scores | None,
    *,
    old_logprobs_R: Tensor | None,
    corrected: bool,
) -> TokenTerms:
    """Terms of one rollout.

    `old_logprobs_R` are the trainer's under the weights that sampled, None while those are the present ones.
    `corrected`: the sampler's log-probs may differ from them.
    """
    surrogate = Surrogate(
        section.clip_low,
        section.clip_high,
        old_logprobs_R,
        section.kl_weight,
        None if scores is None else scores.reference_logprobs_R,
    )
    constant_R = torch.full((len(rollout.response_ids),), advantage)
    return TokenTerms(constant_R, 0.0, rollout.sampler_logprobs_R if corrected else None, surrogate)
