"""What the work needs and what the machine can do: floating-point operations, bytes, and the time they take at least.

Only needed operations count: no padding, no recomputation, no optimizer. A product of [m, k] and [k, n] is 2·m·k·n.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from gopd.model import LanguageModel


@dataclass(frozen=True, slots=True)
class Limits:
    """What a machine can do: products in FLOP/s, reading memory in bytes/s, both measured."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Work:
    """Operations and memory traffic that some work cannot do without."""

    flops: float
    bytes: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, factor: float) -> Work:
        """The same, so many times."""
        return Work(self.flops * factor, self.bytes * factor)

    def seconds(self, limits: Limits) -> float:
        """The least time on a machine: products and traffic overlap perfectly."""
        return max(self._product_seconds(limits), self._memory_seconds(limits))

    def bound(self, limits: Limits) -> str:
        """Which of the two takes longer: `products` or `memory`."""
        return "products" if self._product_seconds(limits) >= self._memory_seconds(limits) else "memory"

    def _product_seconds(self, limits: Limits) -> float:
        return self.flops / limits.flops_per_second

    def _memory_seconds(self, limits: Limits) -> float:
        return self.bytes / limits.bytes_per_second


@dataclass(frozen=True, slots=True)
class ModelCost:
    """Sizes of a dense model that its cost follows from. `element` is the width of a weight in bytes."""

    body: int
    """Weights of the linear layers of the body."""
    head: int
    """Weights of the head."""
    attention: int
    """Width of all query heads of all layers together."""
    cache: int
    """Numbers that one token leaves in the key-value cache."""
    element: int

    @classmethod
    def of(cls, model: LanguageModel) -> ModelCost:
        """The sizes of a loaded model; adapters count as what they are."""
        return cls.of_module(model.module, 2 if model.narrow else model.head_VD.element_size())

    @classmethod
    def of_module(cls, module: PreTrainedModel, element: int) -> ModelCost:
        """The sizes of a model that need not hold weights: one on the device `meta` will do."""
        config = module.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        linears = (m for m in module.get_decoder().modules() if isinstance(m, nn.Linear))
        return cls(
            body=sum(m.weight.numel() for m in linears),
            head=module.get_output_embeddings().weight.numel(),
            attention=config.num_hidden_layers * config.num_attention_heads * width,
            cache=2 * config.num_hidden_layers * config.num_key_value_heads * width,
            element=element,
        )

    def forward(self, prompts: Sequence[int], responses: Sequence[int], *, samples: int = 1) -> Work:
        """One forward pass over rows of so many prompt and response tokens, with the head at response tokens.

        Every `samples` neighbouring rows share one prompt, which is computed once. The last token of a row is never
        fed. Causal attention: token i looks at i + 1 tokens.
        """
        fed = sum(self._row(p + r - 1) for p, r in zip(prompts, responses, strict=True))
        again = sum(self._row(p) for i, p in enumerate(prompts) if i % samples)
        return Work(fed - again + 2.0 * sum(responses) * self.head)

    def _row(self, tokens: int) -> float:
        """Operations of the body over the first so many tokens of a row."""
        return 2.0 * tokens * self.body + 4.0 * self.attention * tokens * (tokens + 1) / 2

    def update(self, prompts: Sequence[int], responses: Sequence[int], *, samples: int = 1) -> Work:
        """Forward and backward: the gradients of inputs and of weights cost as much again each."""
        return self.forward(prompts, responses, samples=samples).times(3)

    def sampling(
        self, prompts: Sequence[int], responses: Sequence[int], *, samples: int = 1, slots: int
    ) -> Work:
        """Drawing responses token by token.

        Memory: each decoding step reads all weights once, and each row its keys and values. There are at least as
        many steps as the longest response has tokens, and as `slots` rows side by side need.
        """
        steps = max(max(responses), -(-sum(responses) // slots))
        looked_at = sum(r * p + r * (r - 1) / 2 for p, r in zip(prompts, responses, strict=True))
        traffic = steps * (self.body + self.head) + looked_at * self.cache
        flops = self.forward(prompts, responses, samples=samples).flops
        return Work(flops, float(traffic * self.element))


@torch.no_grad()
def measure_limits(device: torch.device, rows: int = 2048, width: int = 1024) -> Limits:
    """The machine's rate of float32 products [rows, width]·[width, width] and of reading memory: best of several."""
    values, weight = torch.randn(rows, width, device=device), torch.randn(width, width, device=device)
    large = torch.zeros(2**27, dtype=torch.float32, device=device)  # 512 MiB: beyond any cache
    product = best_seconds(lambda: values @ weight.T, device)
    read = best_seconds(lambda: large.sum(), device)
    return Limits(2.0 * rows * width * width / product, large.nbytes / read)


def best_seconds(call: Callable[[], Tensor], device: torch.device, seconds: float = 0.3) -> float:
    """Shortest of repeated runs of a call over about so many seconds, after one warm-up."""
    best, end = float("inf"), 0.0
    while not end or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if end:
            best = min(best, time.perf_counter() - start)
        else:
            end = time.perf_counter() + seconds
    return best
