"""What the whole steps of `step` would take if they were matrix products, or products and attention, alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from bare import packed_attention, sampling_attention, sampling_products, seconds, sustained_products
from limits import load
from step import Case, cases

from gopd.cost import ModelCost
from gopd.memory import keep_freed_memory
from gopd.recipe import View
from gopd.types import Prompt
from gopd.views import render


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    """Seconds by phase; responses that may end earlier are taken to be whole."""
    keep_freed_memory()
    return {name: measure(name, case) for name, case in cases(quick, gsm8k).items()}


def measure(name: str, case: Case) -> dict[str, Any]:
    model = load(case.student)
    lengths = [len(ids) for ids in render(View(), prompts(case), model.tokenizer)]
    responses = [case.tokens] * case.batch
    whole = [p + r - 1 for p, r in zip(lengths, responses, strict=True)]
    config, products_only = model.module.config, replace(ModelCost.of(model), attention=0)
    needed = products_only.update(lengths, responses).flops
    rate = sustained_products(2048, config.hidden_size, config.intermediate_size, needed)

    sampling_products(model, lengths, 2)  # the first time pays for memory
    products = {
        "sample": seconds(lambda: sampling_products(model, lengths, case.tokens)),
        "score": products_only.forward(lengths, responses).flops / rate,
        "update": needed / rate,
    }
    attention = {
        "sample": seconds(lambda: sampling_attention(model, lengths, case.tokens)),
        "score": seconds(lambda: packed_attention(model, whole, backward=False)),
        "update": seconds(lambda: packed_attention(model, whole, backward=True)),
    }
    for what, phases in (("products", products), ("attention", attention)):
        figures = ", ".join(f"{phase} {value:.3f} s" for phase, value in phases.items())
        print(f"  {name}, {what}: {figures}", flush=True)
    return {"products": products, "attention": attention, "gflops": rate / 1e9}


def prompts(case: Case) -> list[Prompt]:
    """Those of one step."""
    turns = [({"role": "user", "content": text},) for text in case.prompts[: case.batch]]
    return [
        Prompt(i, str(i), turn, "bench", "none", None, "teacher", None, {}) for i, turn in enumerate(turns)
    ]
