"""What `torch.compile` would bring: decoding as one graph, and scoring and update with compiled decoder layers.

Not part of `make bench`: `.venv/bin/python benchmarks/run.py compiled`. The package compiles nothing; this shows how
much there is to gain between the matrix products and the attention, which are the same on both sides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import models
import torch
from bare import sustained_products
from limits import load
from passes import WARM_UP, in_turn, make_learner, packed_logprobs, ragged
from torch import Tensor, nn
from transformers import AttentionInterface

from gopd import attention
from gopd.attention import DecodeLayout, KeyValueCache, PackedLayout
from gopd.cost import ModelCost
from gopd.memory import keep_freed_memory
from gopd.model import LanguageModel
from gopd.prepack import MKL, prepacked
from gopd.types import Scores, TokenTerms

PROMPT = 64
STEPS = 32
ROUNDS = 4
Step = Callable[[Tensor, Tensor, DecodeLayout], Tensor]


LAYOUT: list[DecodeLayout] = []
"""That of the step being computed."""
LIBRARY = torch.library.Library("gopd_benchmark", "DEF")
"""Operators that the compiler leaves as they are. To be kept, as they go when it goes."""


def operator(schema: str, call: Callable[..., Tensor], fake: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Defines one; `fake` makes an empty result of the right shape."""
    name = LIBRARY.define(schema)
    for backend in ("CPU", "MkldnnCPU"):  # packed weights count as the latter
        LIBRARY.impl(name, call, backend)
    torch.library.register_fake(f"gopd_benchmark::{name}", fake, lib=LIBRARY)
    found: Callable[..., Tensor] = getattr(torch.ops.gopd_benchmark, name).default
    return found


ATTEND = operator(
    "attend(Tensor query, Tensor key, Tensor value, float scaling, int layer) -> Tensor",
    lambda query, key, value, scaling, layer: attention.attend(
        SimpleNamespace(layer_idx=layer), query, key, value, None, scaling=scaling, layout=LAYOUT[-1]
    )[0],
    lambda query, key, value, scaling, layer: query.transpose(1, 2).contiguous(),
)
LINEAR = operator(
    "linear(Tensor values, Tensor packed, Tensor weight, Tensor? bias) -> Tensor",
    lambda values, packed, weight, bias: MKL.linear(packed, weight, bias, values),
    lambda values, packed, weight, bias: values.new_empty((*values.shape[:-1], weight.shape[0])),
)


class Packed(nn.Linear):
    """A linear layer with prepacked weights."""

    packed: Tensor

    def forward(self, values: Tensor) -> Tensor:
        return LINEAR(values, self.packed, self.weight, self.bias)


def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, **options: Any) -> Any:
    """Transformers' attention interface."""
    return ATTEND(query, key, value, options["scaling"], module.layer_idx), None


AttentionInterface.register("gopd-operator", attend)
AttentionInterface.register("gopd-apart", torch.compiler.disable(attention.attend))


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    """Seconds as they are and compiled, in turn; and the seconds that compiling took."""
    keep_freed_memory()
    folders = [models.tiny()] if quick else [models.tiny(), models.smollm2()]
    return {f.name: {"decoding": decoding(f, (16, 64)), "passes": passes(f)} for f in folders}


@torch.inference_mode()
def decoding(folder: Path, batches: tuple[int, ...]) -> dict[str, Any]:
    """Of `STEPS` decoding steps after prompts of `PROMPT` tokens, without head and drawing."""
    model, found = load(folder), dict[str, Any]()
    compiled = one_graph(load(folder))
    for rows in batches:
        cache = KeyValueCache(rows, PROMPT + STEPS + 1)
        ids, positions = torch.ones(1, rows * PROMPT, dtype=torch.long), torch.arange(PROMPT).repeat(rows)
        layout = PackedLayout([PROMPT] * rows, cache=cache, slots=tuple(range(rows)))
        model.forward(ids, positions[None], layout)
        with prepacked(model, rows):
            plain = decode(model.forward, cache)
            start = time.perf_counter()
            difference = float((decode(compiled, cache) - plain).abs().max())
            found.setdefault("compiling", time.perf_counter() - start)
            assert difference < 1e-3 * float(plain.abs().max()), difference
            calls: dict[str, Callable[[], object]] = {
                "as it is": partial(decode, model.forward, cache),
                "compiled": partial(decode, compiled, cache),
            }
            found[f"{rows} rows"] = shown(f"{folder.name}, {rows} rows", in_turn(calls, ROUNDS))
    return found


def decode(step: Step, cache: KeyValueCache) -> Tensor:
    """Feeds one token after the other; the last hidden states."""
    last_B1, hidden = torch.ones(cache.slots, 1, dtype=torch.long), torch.empty(0)
    for number in range(STEPS):
        positions_B = torch.full((cache.slots,), PROMPT + number)
        hidden = step(last_B1, positions_B[:, None], DecodeLayout.at(cache, positions_B))
    return hidden


def one_graph(model: LanguageModel) -> Step:
    """The model's body compiled whole, but for products and attention."""
    for module in model.body.modules():
        if type(module) is nn.Linear and MKL.pays(module.weight):
            packed = MKL.reorder(module.weight.detach())
            module.__class__ = Packed
            module.packed = packed
    model.module.set_attn_implementation("gopd-operator")
    body = torch.compile(model.body, dynamic=True, fullgraph=True)

    def step(ids: Tensor, positions: Tensor, layout: DecodeLayout) -> Tensor:
        LAYOUT[:] = [layout]
        hidden: Tensor = body(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        return hidden

    return step


def passes(folder: Path) -> dict[str, Any]:
    """Of scoring and updating ragged rows; each layer's parts before and after its attention are compiled."""
    rollouts = ragged(16, 128)
    prompts, responses = [len(r.prompt_ids) for r in rollouts], [len(r.response_ids) for r in rollouts]
    terms = [TokenTerms(torch.full((n,), -5.0), 1.0) for n in responses]
    scores = [Scores("teacher", 1.0, torch.full((n,), -5.0)) for n in responses]
    calls: dict[str, Callable[[], object]] = {}
    found: dict[str, Any] = {}
    rates: list[float] = []
    for name in ("as it is", "compiled"):
        model = load(folder)
        if name == "compiled":
            model.module.set_attn_implementation("gopd-apart")
            for layer in model.body.layers:
                layer.compile(dynamic=True)
        learner = make_learner(folder, model)
        calls[f"scoring, {name}"] = partial(packed_logprobs, model, rollouts)
        calls[f"update, {name}"] = partial(learner.update, rollouts, scores, terms)
    start = time.perf_counter()
    for call in calls.values():
        call()
    found["compiling"] = time.perf_counter() - start
    cost, config = ModelCost.of(model), model.module.config
    flops = cost.update(prompts, responses).flops
    shape = (2048, config.hidden_size, config.intermediate_size)
    calls = {"products alone": lambda: rates.append(sustained_products(*shape, flops))} | calls
    found["seconds"] = shown(f"{folder.name}, passes", in_turn(calls, ROUNDS))
    found["update share"] = {
        name: median(
            flops / r / s for r, s in zip(rates[WARM_UP:], found["seconds"][f"update, {name}"], strict=True)
        )
        for name in ("as it is", "compiled")
    }
    print(f"  share of the limit: {found['update share']}")
    return found


def shown(what: str, seconds: dict[str, list[float]]) -> dict[str, list[float]]:
    """Prints medians."""
    print(f"  {what}: " + ", ".join(f"{n} {median(s):.4f} s" for n, s in seconds.items()), flush=True)
    return seconds
