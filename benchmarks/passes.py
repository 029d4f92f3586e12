"""Scoring and update of packed ragged rows against padded Transformers, and against products alone, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import models
import numpy as np
import torch
from bare import CPU, packed_attention, packed_products, sustained_products
from limits import load
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from gopd.cost import ModelCost
from gopd.learner import Learner
from gopd.logprobs import linear_logprobs
from gopd.memory import keep_freed_memory
from gopd.model import LanguageModel
from gopd.packing import micro_batches, pack
from gopd.recipe_file import parse_recipe
from gopd.types import Prompt, Rollout, Scores, TokenTerms

BUDGET = 4096
WARM_UP = 2
"""Rounds that do not count: until the second update is over, much of its time goes into getting memory."""


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    """Seconds of a scoring pass and of an update of the same rows; medians over rounds, both ways in turn."""
    keep_freed_memory()
    folder = models.tiny() if quick else models.smollm2()
    rollouts = ragged(8, 64 if quick else 128)
    model = load(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    learner = make_learner(folder, model)
    terms = [TokenTerms(torch.full((len(r.response_ids),), -5.0), 1.0) for r in rollouts]
    scores = [Scores("teacher", 1.0, torch.full((len(r.response_ids),), -5.0)) for r in rollouts]
    prompts, responses = [len(r.prompt_ids) for r in rollouts], [len(r.response_ids) for r in rollouts]
    cost, config = ModelCost.of(model), model.module.config
    work = {
        "scoring": cost.forward(prompts, responses).flops,
        "update": cost.update(prompts, responses).flops,
    }
    shape = (2048, config.hidden_size, config.intermediate_size)
    rates: list[float] = []
    calls: dict[str, Callable[[], object]] = {
        "limit": lambda: rates.append(sustained_products(*shape, work["update"])),
        "scoring, packed": lambda: packed_logprobs(model, rollouts),
        "scoring, padded Transformers": lambda: padded_logprobs(plain, rollouts),
        "update, packed": lambda: learner.update(rollouts, scores, terms),
        "update, padded Transformers": padded_update(plain, rollouts),
        "scoring, products and attention alone": lambda: floor(model, prompts, responses, backward=False),
        "update, products and attention alone": lambda: floor(model, prompts, responses, backward=True),
    }
    seconds = in_turn(calls, rounds=2)
    del seconds["limit"]
    rates = rates[WARM_UP:]
    shares = {
        name: median(work[name.split(",")[0]] / r / s for r, s in zip(rates, values, strict=True))
        for name, values in seconds.items()
    }
    for name, share in shares.items():
        print(f"  {name}: {median(seconds[name]):.2f} s, {share:.0%} of the limit", flush=True)
    return {
        "model": folder.name,
        "prompts": prompts,
        "responses": responses,
        "flops": work,
        "rates": rates,
        "seconds": seconds,
        "share": shares,
    }


def ragged(rows: int, longest: int) -> list[Rollout]:
    """Random rows, prompts and responses of a quarter to the whole of `longest` tokens."""
    generator = np.random.default_rng(0)

    def ids() -> list[int]:
        found: list[int] = generator.integers(2, 500, generator.integers(longest // 4, longest + 1)).tolist()
        return found

    prompt = Prompt(0, "row", (), "bench", "none", None, "teacher", None, {})
    return [Rollout(prompt, 0, ids(), ids(), None, False, "") for _ in range(rows)]


def make_learner(folder: Path, model: LanguageModel) -> Learner:
    recipe = parse_recipe(
        {
            "student": {"model": str(folder)},
            "teachers": {"teacher": {"model": str(folder)}},
            "objective": {"reward_scale": 1.0},
            "data": {"files": ["unused.jsonl"]},
            "train": {"steps": 1, "tokens_per_micro_batch": BUDGET},
        }
    )
    return Learner(recipe, model, total_steps=100, aggregation="seq-mean-token-mean")


def floor(model: LanguageModel, prompts: list[int], responses: list[int], *, backward: bool) -> None:
    """What a pass over these rows cannot do without."""
    packed_products(model, sum(prompts) + sum(responses) - len(prompts), sum(responses), backward=backward)
    lengths = [p + r - 1 for p, r in zip(prompts, responses, strict=True)]
    packed_attention(model, lengths, backward=backward)


@torch.no_grad()
def packed_logprobs(model: LanguageModel, rollouts: list[Rollout]) -> Tensor:
    prompts, responses = [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
    parts = []
    for group in micro_batches(prompts, responses, BUDGET):
        packed = pack([prompts[i] for i in group], [responses[i] for i in group], CPU)
        parts.append(linear_logprobs(model.project(packed), packed.targets_T, 1.0))
    return torch.cat(parts)


def padded(rollouts: list[Rollout]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask, and which tokens are responses; padded on the right."""
    rows = [[*r.prompt_ids, *r.response_ids] for r in rollouts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    response = mask.bool() & (torch.arange(width) >= torch.tensor([[len(r.prompt_ids)] for r in rollouts]))
    return ids, mask, response


def padded_logprobs(plain: PreTrainedModel, rollouts: list[Rollout]) -> Tensor:
    with torch.no_grad():
        return _padded(plain, rollouts)


def _padded(plain: PreTrainedModel, rollouts: list[Rollout]) -> Tensor:
    ids, mask, response = padded(rollouts)
    logits = plain(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return logprobs[response[:, 1:]]


def padded_update(plain: PreTrainedModel, rollouts: list[Rollout]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-6, fused=True)

    def update() -> None:
        optimizer.zero_grad(set_to_none=True)
        (-_padded(plain, rollouts)).mean().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()

    return update


def in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, round by round, after those that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
    return seconds
