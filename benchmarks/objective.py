"""The estimators alone: seconds and peak memory of the fused head and loss against vocabulary and tokens."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from limits import CPU
from torch import Tensor

from gopd.logprobs import Projection, Target, linear_loss
from gopd.loss import MicroBatchLoss
from gopd.memory import keep_freed_memory, peak_memory_gb, restart_peak
from gopd.packing import pack
from gopd.sections import CorrectionSection, ObjectiveSection
from gopd.types import HiddenHere, Scores, TokenTerms

ESTIMATORS: dict[str, dict[str, Any]] = {
    "sampled": {},
    "sampled, control variate": {"control_variate": True},
    "topk": {"estimator": "topk"},
    "full": {"estimator": "full"},
    "full, λ = 1.25": {"estimator": "full", "reward_scale": 1.25},
}
WIDTH = 256


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    vocabularies = [1024, 32768] if quick else [1024, 8192, 32768, 131072, 262144]
    sizes = [(512, vocabulary) for vocabulary in vocabularies]
    sizes += [] if quick else [(count, 32768) for count in (128, 2048, 4096)]
    rows = []
    for count, vocabulary in sizes:
        for name, settings in ESTIMATORS.items():
            rows.append({"estimator": name, **measure(count, vocabulary, settings)})
        line = ", ".join(f"{r['estimator']} {r['seconds']:.2f} s" for r in rows[-len(ESTIMATORS) :])
        print(f"  {count} tokens, vocabulary {vocabulary}: {line}", flush=True)
    return {"rows": rows, "width": WIDTH}


def measure(tokens: int, vocabulary: int, settings: dict[str, Any], rounds: int = 1) -> dict[str, Any]:
    """Forward and backward of `tokens` tokens; memory above the inputs and their gradients."""
    keep_freed_memory()
    torch.manual_seed(0)
    hidden_TD, head_VD = torch.randn(tokens, WIDTH), torch.randn(vocabulary, WIDTH) / WIDTH**0.5
    ids = torch.randint(vocabulary, (tokens,)).tolist()
    packed = pack([[0]], [ids], CPU)
    objective = ObjectiveSection(**{"reward_scale": 1.0} | settings)
    whole, scale = bool(settings), objective.reward_scale
    reference = Projection(hidden_TD.roll(2, 0), head_VD) if scale != 1 else None
    target = Target(Projection(hidden_TD.roll(1, 0), head_VD), reference, scale) if whole else None

    def once() -> Tensor:
        scores = [
            Scores("t", 1.0, torch.zeros(tokens), hidden=HiddenHere(hidden_TD, None) if whole else None)
        ]
        constant = torch.zeros(tokens) if whole else torch.full((tokens,), -8.0)
        terms = [TokenTerms(constant, 0.0 if whole else 1.0)]
        weight_T = torch.full((tokens,), 1 / tokens)
        loss = MicroBatchLoss(objective, CorrectionSection(), packed, terms, scores, weight_T, target, 1.0)
        hidden, head = hidden_TD.detach().requires_grad_(), head_VD.detach().requires_grad_()
        linear_loss(Projection(hidden, head), loss, 1.0).backward()
        assert head.grad is not None
        return head.grad

    seconds = []
    once()
    restart_peak()
    before = peak_memory_gb()
    for _ in range(rounds):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    gradients = 4 * WIDTH * (tokens + vocabulary) / 1e9
    return {
        "tokens": tokens,
        "vocabulary": vocabulary,
        "seconds": median(seconds),
        "peak_gb": max(0.0, peak_memory_gb() - before - gradients),
    }
