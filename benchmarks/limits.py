"""What the machine can do: products at the shapes that matter, reading memory, decoding with products alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gopd.cost import best_seconds, measure_limits
from gopd.model import LanguageModel, load_model
from gopd.prepack import prepacked
from gopd.recipe import ModelSpec

CPU = torch.device("cpu")
SHAPES = {
    "a large square": (2048, 2048, 2048),
    "MLP of SmolLM2, update": (2048, 576, 1536),
    "attention of SmolLM2, update": (2048, 576, 576),
    "head of SmolLM2": (341, 576, 49152),
    "MLP of SmolLM2, decoding 64 rows": (64, 576, 1536),
    "MLP of SmolLM2, decoding 16 rows": (16, 576, 1536),
    "MLP of the tiny family, update": (2048, 128, 192),
}
"""(rows, in, out) of a linear layer."""


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    seconds = 0.2 if quick else 1.0
    rates = {name: product_rate(*shape, seconds) / 1e9 for name, shape in SHAPES.items()}
    read = measure_limits(CPU).bytes_per_second / 1e9
    for name, rate in rates.items():
        print(f"  {name}: {rate:.0f} GFLOP/s", flush=True)
    print(f"  reading memory: {read:.1f} GB/s", flush=True)
    return {"gflops": rates, "read_gb_per_second": read, "threads": torch.get_num_threads()}


@torch.no_grad()
def product_rate(rows: int, width_in: int, width_out: int, seconds: float) -> float:
    values, weight = torch.randn(rows, width_in), torch.randn(width_out, width_in)
    best = best_seconds(lambda: nn.functional.linear(values, weight), CPU, seconds)
    return 2.0 * rows * width_in * width_out / best


def products_floor(model: LanguageModel, batch: int, prompt: int) -> dict[str, float]:
    """Seconds that sampling takes when it consists of nothing but the products; weights prepacked.

    `prefill` is for `batch` prompts of `prompt` tokens each, `step` for one more token of every row.
    """
    return {
        "prefill": _products_only(model, batch * prompt, batch),
        "step": _products_only(model, batch, batch),
    }


def load(folder: Path) -> LanguageModel:
    """A model as the benchmarks use it: float32 on the CPU."""
    return load_model(ModelSpec(model=str(folder)), "model", device=CPU, dtype=torch.float32)


@torch.no_grad()
def _products_only(model: LanguageModel, rows: int, batch: int) -> float:
    layers = [m for m in model.body.modules() if type(m) is nn.Linear]
    inputs = {n: torch.randn(rows, n) for n in {m.in_features for m in layers}}
    hidden = torch.randn(batch, model.head_VD.shape[1])
    with prepacked(model, batch) as head:

        def step() -> Tensor:
            for layer in layers:
                layer(inputs[layer.in_features])
            return head(hidden)

        return best_seconds(step, CPU, 1.0)
