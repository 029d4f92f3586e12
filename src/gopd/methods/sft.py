"""Supervised fine-tuning: every token of the demonstration has advantage 1, so the loss is its negative log-prob."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gopd.types import Rollout, TokenTerms


def token_terms(rollouts: Sequence[Rollout]) -> list[TokenTerms]:
    """Terms of every demonstration."""
    return [TokenTerms(torch.ones(len(r.response_ids)), 0.0) for r in rollouts]
