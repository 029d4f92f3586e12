"""A model's matrix products and its attention, without anything else: the floors under sampling, scoring and update.

Both take the model's own shapes and PyTorch's own kernels as gopd uses them; what a step takes beyond is norms, rotary
embeddings, activations, drawing, the optimizer, and PyTorch's dispatch of all that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from gopd.attention import DecodeLayout, KeyValueCache, PackedLayout, attend
from gopd.logprobs import token_chunks
from gopd.model import LanguageModel
from gopd.prepack import prepacked

CPU = torch.device("cpu")


def seconds(call: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@torch.inference_mode()
def sustained_products(rows: int, width_in: int, width_out: int, flops: float) -> float:
    """FLOP/s over so many operations of one product after the other, each with weights of its own.

    For work of seconds this is the limit. The best of many runs of one product is higher: its weights stay in the
    cache, and processors do not keep up their best.
    """
    values = torch.randn(rows, width_in)
    weights = [torch.randn(width_out, width_in) for _ in range(32)]
    each = 2.0 * rows * width_in * width_out
    count = max(1, round(flops / each))

    def products() -> None:
        for i in range(count):
            nn.functional.linear(values, weights[i % len(weights)])

    return count * each / seconds(products)


@torch.inference_mode()
def sampling_products(model: LanguageModel, prompts: Sequence[int], tokens: int) -> None:
    """The products of drawing so many tokens for every prompt: prefill, then step by step, weights prepacked."""
    layers = [m for m in model.body.modules() if type(m) is nn.Linear]
    hidden = torch.ones(len(prompts), model.head_VD.shape[1])

    def forward(inputs: dict[int, Tensor]) -> None:
        for layer in layers:
            layer(inputs[layer.in_features])
        head(hidden)

    with prepacked(model, len(prompts)) as head:
        widths = {m.in_features for m in layers}
        forward({n: torch.ones(sum(prompts), n) for n in widths})
        one_each = {n: torch.ones(len(prompts), n) for n in widths}
        for _ in range(tokens - 1):
            forward(one_each)


@torch.inference_mode()
def sampling_attention(model: LanguageModel, prompts: Sequence[int], tokens: int) -> None:
    """The attention of the same, over a key-value cache."""
    cache = KeyValueCache(len(prompts), max(prompts) + tokens)
    prefill = PackedLayout(list(prompts), cache=cache, slots=tuple(range(len(prompts))))
    heads = _heads(model, 1, sum(prompts))
    for layer in _layers(model):
        attend(layer, *heads, None, scaling=0.1, layout=prefill)
    heads, positions_B = _heads(model, len(prompts), 1), torch.tensor(prompts)
    for _ in range(tokens - 1):
        layout = DecodeLayout.at(cache, positions_B)
        for layer in _layers(model):
            attend(layer, *heads, None, scaling=0.1, layout=layout)
        positions_B = positions_B + 1


def packed_products(model: LanguageModel, tokens: int, predicted: int, *, backward: bool) -> None:
    """The products of one pass over so many tokens, with the head on those that predict; and of its backward pass."""
    layers = [(m.weight, tokens) for m in model.body.modules() if type(m) is nn.Linear]
    heads = [(model.head_VD, c.stop - c.start) for c in token_chunks(predicted, len(model.head_VD))]
    for weight, rows in [*layers, *heads]:
        weight = weight.detach()
        values, gradient = (torch.ones(rows, n) for n in (weight.shape[1], weight.shape[0]))
        nn.functional.linear(values, weight)
        if backward:
            torch.mm(gradient, weight)
            torch.mm(gradient.T, values)


def packed_attention(model: LanguageModel, lengths: Sequence[int], *, backward: bool) -> None:
    """The attention of one pass over packed rows, with or without its backward pass."""
    layout, heads = PackedLayout(list(lengths)), _heads(model, 1, sum(lengths))
    with torch.set_grad_enabled(backward):
        inputs = [x.requires_grad_(backward) for x in heads]
        for layer in _layers(model):
            out, _ = attend(layer, *inputs, None, scaling=0.1, layout=layout)
            if backward:
                torch.autograd.grad(out, inputs, torch.ones_like(out))


def _layers(model: LanguageModel) -> list[SimpleNamespace]:
    """Modules that know their number."""
    return [SimpleNamespace(layer_idx=i) for i in range(model.module.config.num_hidden_layers)]


def _heads(model: LanguageModel, batch: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of one layer, [batch, heads, tokens, width]."""
    config = model.module.config
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    query, key, value = (torch.ones(batch, n, tokens, width) for n in (heads, groups, groups))
    return query, key, value
