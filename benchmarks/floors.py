"""What the whole steps of `step` would take if they were matrix products, or products and attention, alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from bare import packed_attention, packed_products, sampling_attention, sampling_products, seconds
from limits import load
from step import Case, cases

from gopd.memory import keep_freed_memory
from gopd.sections import View
from gopd.types import Prompt
from gopd.views import render


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    """Seconds by phase, medians over rounds; responses that may end earlier are taken to be whole."""
    keep_freed_memory()
    return {name: measure(name, case) for name, case in cases(quick, gsm8k).items()}


def measure(name: str, case: Case) -> dict[str, Any]:
    model = load(case.student)
    lengths = [len(ids) for ids in render(View(), prompts(case), model.tokenizer)]
    responses = [case.tokens] * case.batch
    whole = [p + r - 1 for p, r in zip(lengths, responses, strict=True)]
    tokens, predicted = sum(whole), sum(responses)
    calls: dict[str, dict[str, Callable[[], object]]] = {
        "products": {
            "sample": lambda: sampling_products(model, lengths, case.tokens),
            "score": lambda: packed_products(model, tokens, predicted, backward=False),
            "update": lambda: packed_products(model, tokens, predicted, backward=True),
        },
        "attention": {
            "sample": lambda: sampling_attention(model, lengths, case.tokens),
            "score": lambda: packed_attention(model, whole, backward=False),
            "update": lambda: packed_attention(model, whole, backward=True),
        },
    }
    sampling_products(model, lengths, 2)  # the first time pays for memory
    found = {
        what: {
            phase: median(seconds(call) for _ in range(case.rounds // 2)) for phase, call in phases.items()
        }
        for what, phases in calls.items()
    }
    for what, phases in found.items():
        figures = ", ".join(f"{phase} {value:.3f} s" for phase, value in phases.items())
        print(f"  {name}, {what}: {figures}", flush=True)
    return found


def prompts(case: Case) -> list[Prompt]:
    """Those of one step."""
    turns = [({"role": "user", "content": text},) for text in case.prompts[: case.batch]]
    return [
        Prompt(i, str(i), turn, "bench", "none", None, "teacher", None, {}) for i, turn in enumerate(turns)
    ]
