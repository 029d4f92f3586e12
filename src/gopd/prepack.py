"""Linear layers with weights laid out for the matrix library once, instead of anew at every product.

A decoding step multiplies a few rows by every weight matrix of the model. For so few rows, much of the time goes into
bringing the weights into the order that the CPU's kernels read, so the sampler does that once per batch of requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor, nn

from gopd.logprobs import Projection
from gopd.model import LanguageModel

log = logging.getLogger(__name__)

Head = Callable[[Tensor], Tensor]
"""Final hidden states [B, D] → logits [B, V] in float32, at temperature 1."""

ROWS = 64
"""Row count that the layout is chosen for; measured: it suits any number of rows."""
LEAST_ROWS = 3
"""For fewer rows the plain layers are as fast, and packing would only cost time."""
LEAST_WEIGHTS = 2**18
"""Smaller layers stay plain: a call of a prepacked one costs about 20 µs more, a plain product as a whole less."""


@contextmanager
def prepacked(model: LanguageModel, rows: int) -> Iterator[Head]:
    """Inside, the model's large linear layers use prepacked copies of their present weights; yields its head likewise.

    `rows` is how many rows decode side by side at most. No gradient may be taken inside, and a change of the weights
    would not be seen. Costs one copy of the weights. On a GPU and in bfloat16 the model stays as it is.
    """
    possible = rows >= LEAST_ROWS and model.device.type == "cpu" and not model.narrow and _available()
    layers = [m for m in model.body.modules() if possible and type(m) is nn.Linear and _large(m.weight)]
    try:
        for layer in layers:
            vars(layer)["forward"] = _packed(layer.weight, layer.bias)
        yield _packed(model.head_VD, None) if possible and _large(model.head_VD) else _plain_head(model)
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _plain_head(model: LanguageModel) -> Head:
    head_VD = model.head_VD.bfloat16() if model.narrow else model.head_VD
    return lambda hidden_BD: Projection(hidden_BD, head_VD).logits(slice(None), 1.0)


def _large(weight: Tensor) -> bool:
    return weight.numel() >= LEAST_WEIGHTS


def _packed(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return partial(_linear, _reorder(weight.detach(), ROWS), bias)


def _reorder(weight: Tensor, rows: int) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
    return packed


def _linear(packed: Tensor, bias: Tensor | None, values: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(values, packed, bias, "none", [], "")
    return product


@cache
def _available() -> bool:
    """Whether this PyTorch has the two operators, which it does not document, and they compute a linear layer."""
    values, weight, bias = torch.eye(3), torch.arange(6.0).view(2, 3), torch.ones(2)
    try:
        right = torch.equal(_linear(_reorder(weight, ROWS), bias, values), weight.T + 1)
    except (AttributeError, RuntimeError) as error:
        right = False
        log.info("%s", error)
    if not right:
        log.warning("this PyTorch has no prepacked linear layers; sampling will be slower on a CPU")
    return right
