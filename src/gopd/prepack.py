"""Linear layers with weights laid out for the matrix library once, instead of anew at every product.

A decoding step multiplies a few rows by every weight matrix of the model. For so few rows, much of the time goes into
bringing the weights into the order that the CPU's kernels read, so the sampler does that once per batch of requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

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


@dataclass(frozen=True)
class Library:
    """A matrix library that can multiply by prepacked weights; `linear` takes packed, weight, bias and values."""

    name: str
    reorder: Callable[[Tensor], Tensor]
    linear: Callable[[Tensor, Tensor, Tensor | None, Tensor], Tensor]
    least_weights: int
    """Smaller layers stay plain: there, calling the library costs more than packing saves."""

    def pays(self, weight: Tensor) -> bool:
        """Whether a layer is large enough."""
        return weight.numel() >= self.least_weights

    def packed(self, weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The layer as a function of its input."""
        weight = weight.detach()
        return partial(self.linear, self.reorder(weight), weight, bias)


def _mkl(packed: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor) -> Tensor:
    rows = values.numel() // values.shape[-1]
    product: Tensor = torch.ops.mkl._mkl_linear(values, packed, weight, bias, rows)
    return product


def _onednn(packed: Tensor, weight: Tensor, bias: Tensor | None, values: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(values, packed, bias, "none", [], "")
    return product


MKL = Library("MKL", lambda weight: torch.ops.mkl._mkl_reorder_linear_weight(weight, ROWS), _mkl, 2**14)
ONEDNN = Library(
    "oneDNN", lambda weight: torch.ops.mkldnn._reorder_linear_weight(weight, ROWS), _onednn, 2**18
)


@contextmanager
def prepacked(model: LanguageModel, rows: int) -> Iterator[Head]:
    """Inside, the model's large linear layers use prepacked copies of their present weights; yields its head likewise.

    `rows` is how many rows decode side by side at most. No gradient may be taken inside, and a change of the weights
    would not be seen. Costs one copy of the weights. On a GPU and in bfloat16 the model stays as it is.
    """
    wide = model.head_VD.dtype == torch.float32 and not model.narrow
    possible = rows >= LEAST_ROWS and model.device.type == "cpu" and wide
    library = _library() if possible else None
    if library is None:
        yield _plain(model)
        return
    layers = [m for m in model.body.modules() if type(m) is nn.Linear and library.pays(m.weight)]
    try:
        for layer in layers:
            vars(layer)["forward"] = library.packed(layer.weight, layer.bias)
        yield library.packed(model.head_VD, None) if library.pays(model.head_VD) else _plain(model)
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _plain(model: LanguageModel) -> Head:
    head_VD = model.head_VD.bfloat16() if model.narrow else model.head_VD
    return lambda hidden_BD: Projection(hidden_BD, head_VD).logits(slice(None), 1.0)


@cache
def _library() -> Library | None:
    """The library for this machine; None when its operators, which PyTorch does not document, are missing or wrong.

    Chosen by the processor's maker and never by a timing, so that a run repeats bit by bit: on Intel's, MKL took 0.8
    times as long as oneDNN; on AMD's, oneDNN was the one measured.
    """
    library = MKL if "GenuineIntel" in _processor() and torch.backends.mkl.is_available() else ONEDNN
    weight, bias = torch.randn(80, 96, generator=torch.Generator().manual_seed(0)), torch.ones(80)
    try:
        layer = library.packed(weight, bias)
        inputs = (torch.eye(96)[:rows] for rows in (1, 3, 17, ROWS, ROWS + 1))
        right = all(torch.allclose(layer(x), x @ weight.T + bias, atol=1e-5) for x in inputs)
    except (AttributeError, RuntimeError) as error:
        right = False
        log.info("%s", error)
    if not right:
        log.warning("this PyTorch has no prepacked linear layers; sampling will be slower on a CPU")
    return library if right else None


def _processor() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")[:4096]
    except OSError:
        return ""
