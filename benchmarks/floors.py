"""What the whole steps of `step` would take if they consisted of their matrix products and nothing else."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from limits import load, product_rate, products_floor
from step import Case, cases

from gopd.cost import ModelCost
from gopd.recipe import View
from gopd.types import Prompt
from gopd.views import render


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    """Seconds by phase; responses that may end earlier are taken to be whole."""
    results = {}
    for name, case in cases(quick, gsm8k).items():
        model = load(case.student)
        lengths = [len(ids) for ids in render(View(), prompts(case), model.tokenizer)]
        responses = [case.tokens] * case.batch
        cost, config = ModelCost.of(model), model.module.config
        rate = product_rate(2048, config.hidden_size, config.intermediate_size, 1.0)
        sample = products_floor(model, case.batch, round(mean(lengths)))
        results[name] = {
            "sample": sample["prefill"] + (case.tokens - 1) * sample["step"],
            "score": cost.forward(lengths, responses).flops / rate,
            "update": cost.update(lengths, responses).flops / rate,
            "gflops": rate / 1e9,
        }
        phases = ", ".join(f"{phase} {seconds:.2f}" for phase, seconds in results[name].items())
        print(f"  {name}: {phases}", flush=True)
    return results


def prompts(case: Case) -> list[Prompt]:
    """Those of one step."""
    turns = [({"role": "user", "content": text},) for text in case.prompts[: case.batch]]
    return [
        Prompt(i, str(i), turn, "bench", "none", None, "teacher", None, {}) for i, turn in enumerate(turns)
    ]
