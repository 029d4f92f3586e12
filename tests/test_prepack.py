from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import MakeModel
from gopd import prepack
from gopd.attention import PackedLayout
from gopd.model import LanguageModel, load_model
from gopd.prepack import MKL, ONEDNN, Library, prepacked
from gopd.sampler import Request
from gopd.sampler.torch import TorchSampler
from gopd.sections import LoraSection, ModelSpec, SamplingSection

CHOOSE = prepack._library.__wrapped__
"""The choice itself, without its cache."""


@pytest.fixture(autouse=True, params=[MKL, ONEDNN], ids=lambda library: library.name)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Either library, for small layers too."""
    chosen: Library = replace(request.param, least_weights=0)
    monkeypatch.setattr(prepack, "_library", lambda: chosen)
    return chosen


@pytest.fixture
def model(make_model: MakeModel) -> LanguageModel:
    return load(make_model(0))


def load(folder: Path, **options: Any) -> LanguageModel:
    spec = ModelSpec(model=str(folder))
    return load_model(spec, "student", device=torch.device("cpu"), dtype=torch.float32, **options)


def linears(model: LanguageModel) -> list[nn.Linear]:
    return [m for m in model.module.modules() if type(m) is nn.Linear]


@torch.no_grad()
def hidden(model: LanguageModel, tokens: int) -> torch.Tensor:
    ids = torch.arange(tokens)[None] % 60
    return model.forward(ids, torch.arange(tokens)[None], PackedLayout([tokens]))[0]


@pytest.mark.parametrize(
    ("maker", "library"), [("GenuineIntel", MKL), ("AuthenticAMD", ONEDNN), ("", ONEDNN)]
)
def test_the_pinned_torch_has_prepacked_layers(
    maker: str, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without them sampling is correct but slow: that must not go unseen."""
    monkeypatch.setattr(prepack, "_processor", lambda: f"vendor_id\t: {maker}")
    assert CHOOSE() is library


@pytest.mark.parametrize("sizes", [(1, 1), (5, 7), (64, 128), (129, 33), (96, 640)], ids=str)
def test_products_are_right_for_any_number_of_rows(library: Library, sizes: tuple[int, int]) -> None:
    weight, bias = torch.randn(sizes), torch.randn(sizes[0])
    layer = library.packed(weight, bias)
    for rows in [*range(1, 40), 63, 64, 65, 127, 128, 129, 300]:
        values = torch.randn(1, rows, sizes[1])
        expected = values.double() @ weight.double().T + bias
        torch.testing.assert_close(layer(values).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 3, 40, 200])
def test_hidden_states_and_logits_are_those_of_the_plain_layers(model: LanguageModel, tokens: int) -> None:
    before = hidden(model, tokens)
    with prepacked(model, 8) as head:
        inside = hidden(model, tokens)
        logits = head(inside)
        assert all("forward" in m.__dict__ for m in linears(model) if m.weight is not model.head_VD)
    torch.testing.assert_close(inside, before, rtol=1e-5, atol=1e-5)
    expected = inside.double() @ model.head_VD.double().T
    torch.testing.assert_close(logits.double(), expected, rtol=1e-5, atol=1e-5)
    assert logits.dtype == torch.float32


def test_small_layers_stay_plain(
    model: LanguageModel, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = sorted({m.weight.numel() for m in linears(model)})
    monkeypatch.setattr(prepack, "_library", lambda: replace(library, least_weights=sizes[1]))
    with prepacked(model, 8):
        packed = {m.weight.numel() for m in linears(model) if "forward" in m.__dict__}
    assert packed == {m.weight.numel() for m in linears(model) if m.weight is not model.head_VD} - {sizes[0]}


def test_few_rows_use_the_plain_layers(model: LanguageModel) -> None:
    with prepacked(model, 2):
        assert not any("forward" in m.__dict__ for m in model.module.modules())


def test_the_plain_layers_are_back_afterwards_also_after_an_error(model: LanguageModel) -> None:
    with pytest.raises(KeyError), prepacked(model, 8):
        raise KeyError
    assert not any("forward" in m.__dict__ for m in model.module.modules())


def test_biases_and_adapters_are_kept(llama_folder: Path) -> None:
    model = load(llama_folder)
    model.add_lora(LoraSection(rank=4), seed=0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        for layer in linears(model)[:3]:
            layer.bias = nn.Parameter(torch.arange(float(layer.out_features)) / layer.out_features)
    before = hidden(model, 9)
    with prepacked(model, 8):
        torch.testing.assert_close(hidden(model, 9), before, rtol=1e-5, atol=1e-5)
        with model.without_adapters():
            base = hidden(model, 9)
    assert (base - before).abs().max() > 1e-3


def test_the_next_sampling_sees_an_update(model: LanguageModel) -> None:
    request = [Request([4, 5, 6], (0, i), 12) for i in range(8)]
    sampler = TorchSampler(model, 8)
    first = sampler.sample(request, SamplingSection(), lambda *_: None)[0]
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(1.1)
    second = sampler.sample(request, SamplingSection(), lambda *_: None)[0]
    assert not torch.equal(first.logprobs_R[:1], second.logprobs_R[:1])


def test_a_torch_without_them_samples_the_same_and_says_so(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [Request([4, 5, i], (0, i), 12) for i in range(5)]
    fast = TorchSampler(model, 5).sample(requests, SamplingSection(), lambda *_: None)

    def missing(*_: object) -> torch.Tensor:
        raise AttributeError("no such operator")

    monkeypatch.setattr(prepack, "MKL", replace(MKL, reorder=missing))
    monkeypatch.setattr(prepack, "ONEDNN", replace(ONEDNN, linear=missing))
    monkeypatch.setattr(prepack, "_library", CHOOSE)
    plain = TorchSampler(model, 5).sample(requests, SamplingSection(), lambda *_: None)
    assert "slower" in caplog.text
    for one, other in zip(fast, plain, strict=True):
        assert one.ids == other.ids
        torch.testing.assert_close(one.logprobs_R, other.logprobs_R, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_model_in_bfloat16_stays_as_it_is(make_model: MakeModel, frozen: bool) -> None:
    """A student that computes narrow, and a frozen model whose weights are."""
    model = load(make_model(0), narrow=not frozen)
    if frozen:
        model.module.bfloat16()
    with prepacked(model, 8) as head:
        assert not any("forward" in m.__dict__ for m in model.module.modules())
        assert head(hidden(model, 3)).dtype == torch.float32
