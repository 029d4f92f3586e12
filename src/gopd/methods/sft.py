"""Supervised fine-tuning: every token of the demonstration has advantage 1, so the loss is its negative log-prob."""

from __future__ import annotations

import torch

from gopd.types import Rollout, TokenTerms


def token_terms(rollout: Rollout) -> TokenTerms:
    """Terms of one demonstration."""
    return TokenTerms(torch.ones(len(rollout.response_ids)), 0.0)
