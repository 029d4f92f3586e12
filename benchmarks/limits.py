"""What the machine can do: products at the shapes that matter, and reading memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from bare import CPU, sustained_products
from torch import nn

from gopd.cost import best_seconds, measure_limits
from gopd.model import LanguageModel, load_model
from gopd.sections import ModelSpec

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
    sustained = sustained_products(2048, 576, 1536, seconds * 1.5e12) / 1e9
    read = measure_limits(CPU).bytes_per_second / 1e9
    for name, rate in rates.items():
        print(f"  {name}: {rate:.0f} GFLOP/s", flush=True)
    print(f"  MLP of SmolLM2, update, kept up: {sustained:.0f} GFLOP/s", flush=True)
    print(f"  reading memory: {read:.1f} GB/s", flush=True)
    rates["MLP of SmolLM2, update, kept up for seconds, weight after weight"] = sustained
    return {"gflops": rates, "read_gb_per_second": read, "threads": torch.get_num_threads()}


@torch.no_grad()
def product_rate(rows: int, width_in: int, width_out: int, seconds: float) -> float:
    values, weight = torch.randn(rows, width_in), torch.randn(width_out, width_in)
    best = best_seconds(lambda: nn.functional.linear(values, weight), CPU, seconds)
    return 2.0 * rows * width_in * width_out / best


def load(folder: Path) -> LanguageModel:
    """A model as the benchmarks use it: float32 on the CPU."""
    return load_model(ModelSpec(model=str(folder)), "model", device=CPU, dtype=torch.float32)
