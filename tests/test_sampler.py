from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from conftest import EOS, VOCABULARY, MakeModel
from gopd.attention import DecodeLayout, PackedLayout
from gopd.errors import RunFailed
from gopd.model import LanguageModel, load_model
from gopd.sampler import Request, Response
from gopd.sampler import torch as engine
from gopd.sampler.torch import TorchSampler, draw, restrict, row_uniforms
from gopd.sections import ModelSpec, SamplingSection

GRID = 20_000
ENDS = [EOS, 5, 9, 31, 40]
ALMOST_ONE = 1 - 2**-53


def logits(seed: int, *shape: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grid_counts(logits_V: Tensor, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """How often each token is drawn when the uniform numbers are the midpoints of GRID equal intervals."""
    counts = torch.zeros(len(logits_V), dtype=torch.long)
    for uniforms in ((torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID).split(2000):
        ids, _ = draw(logits_V.expand(len(uniforms), -1).clone(), uniforms, top_p, top_k)
        counts += ids.bincount(minlength=len(logits_V))
    return counts


def brute_restricted(logits_V: Tensor, top_p: float, top_k: int) -> Tensor:
    """Probabilities after top-k, renormalised, then the smallest set of likeliest tokens that reaches top-p."""
    weights = {v: float(w) for v, w in enumerate(logits_V.double().softmax(-1))}
    order = sorted(weights, key=lambda v: -weights[v])[: top_k or None]
    total = sum(weights[v] for v in order)
    kept, reached = [], 0.0
    for v in order:
        if reached >= top_p:
            break
        kept.append(v)
        reached += weights[v] / total
    probs = torch.zeros(len(logits_V), dtype=torch.float64)
    for v in kept:
        probs[v] = weights[v] / sum(weights[u] for u in kept)
    return probs


# --- drawing one token ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocabulary", [2, 64, 128, 130, 1000])
def test_every_token_gets_its_share_of_the_unit_interval(vocabulary: int) -> None:
    logits_V = logits(vocabulary, vocabulary)
    expected = GRID * logits_V.double().softmax(-1)
    counts = grid_counts(logits_V)
    assert int(counts.sum()) == GRID
    assert float((counts - expected).abs().max()) <= 1.05, "an interval holds its length in grid points, ± 1"


@pytest.mark.parametrize(("top_p", "top_k"), [(0.9, 0), (0.5, 0), (1.0, 1), (1.0, 7), (0.8, 20), (1.0, 5000)])
def test_restricted_draws_have_the_restricted_distribution(top_p: float, top_k: int) -> None:
    logits_V = logits(3, 200)
    expected = GRID * brute_restricted(logits_V, top_p, top_k)
    counts = grid_counts(logits_V, top_p, top_k)
    assert float((counts - expected).abs().max()) <= 1.05
    assert not bool(counts[expected == 0].any())


@pytest.mark.parametrize(("top_p", "top_k"), [(0.1, 0), (0.5, 0), (0.95, 0), (1.0, 1), (1.0, 40), (0.7, 10)])
def test_restrict_keeps_the_nucleus(top_p: float, top_k: int) -> None:
    logits_BV = logits(5, 50, 150)
    kept = restrict(logits_BV, top_p, top_k)
    for row, before in zip(kept, logits_BV, strict=True):
        inside = brute_restricted(before, top_p, top_k) > 0
        assert torch.equal(torch.isfinite(row), inside)
        assert torch.equal(row[inside], before[inside])


def test_nucleus_that_is_reached_exactly_takes_no_further_token() -> None:
    kept = restrict(torch.tensor([[0.25, 0.5, 0.25]]).log(), 0.5, 0)
    assert torch.isfinite(kept).tolist() == [[False, True, False]]


@pytest.mark.parametrize("uniform", [0.0, 2**-53, 0.5, ALMOST_ONE])
@pytest.mark.parametrize("vocabulary", [3, 127, 128, 129, 700])
def test_tokens_without_probability_are_never_drawn(uniform: float, vocabulary: int) -> None:
    only = torch.tensor([0, 1, vocabulary // 2, vocabulary - 1])
    for impossible in (-torch.inf, -1e4):
        logits_BV = torch.full((len(only), vocabulary), impossible)
        logits_BV[torch.arange(len(only)), only] = 1.5
        ids, logprobs = draw(logits_BV, torch.full((len(only),), uniform, dtype=torch.float64), 1.0, 0)
        assert torch.equal(ids, only)
        assert logprobs.tolist() == [0.0] * len(only)


def test_ends_of_the_unit_interval_draw_the_first_and_the_last_possible_token() -> None:
    logits_BV = logits(9, 200, 300)
    logits_BV[:, [0, 1, 298, 299]] = -torch.inf
    first, _ = draw(logits_BV.clone(), torch.zeros(200, dtype=torch.float64), 1.0, 0)
    last, _ = draw(logits_BV.clone(), torch.full((200,), ALMOST_ONE, dtype=torch.float64), 1.0, 0)
    assert first.tolist() == [2] * 200
    assert last.tolist() == [297] * 200


@pytest.mark.parametrize("vocabulary", [128, 256, 300])
def test_rounding_of_sums_never_leads_outside_the_vocabulary(vocabulary: int) -> None:
    """A block's probabilities summed in another order may come out an ulp short of the point that is looked for."""
    logits_BV = logits(12, 500, vocabulary, spread=8.0)
    ids, _ = draw(logits_BV.clone(), torch.full((500,), ALMOST_ONE, dtype=torch.float64), 1.0, 0)
    assert int(ids.max()) < vocabulary
    beyond_BV = torch.arange(vocabulary) > ids[:, None]
    rest_B = logits_BV.double().softmax(-1).masked_fill(~beyond_BV, 0).sum(-1)
    assert float(rest_B.max()) < 1e-12


@pytest.mark.parametrize(("top_p", "top_k"), [(1.0, 0), (0.5, 0), (1.0, 3)])
def test_drawn_logprobs_are_of_the_whole_distribution(top_p: float, top_k: int) -> None:
    logits_BV = logits(11, 40, 300)
    uniforms = row_uniforms((1, 2), 40)
    ids, found = draw(logits_BV.clone(), uniforms, top_p, top_k)
    expected = logits_BV.double().log_softmax(-1)[range(40), ids]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


# --- random streams --------------------------------------------------------------------------------------------------


def test_streams_are_repeatable_and_a_longer_one_starts_the_same() -> None:
    assert torch.equal(row_uniforms((0, 1, 2, 3), 5), row_uniforms((0, 1, 2, 3), 100)[:5])
    assert row_uniforms((0,), 1).dtype == torch.float64


def test_streams_differ_in_every_part_of_their_key() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 23), (12, 3), (123,)]
    firsts = {float(row_uniforms(key, 1)) for key in keys}
    assert len(firsts) == len(keys)


def test_streams_are_uniform_within_and_across_rows() -> None:
    across = torch.stack([row_uniforms((7, 3, prompt, 0), 4) for prompt in range(2000)])
    for numbers in (row_uniforms((5,), 8000), across[:, 0], across[:, 3]):
        assert bool(((numbers >= 0) & (numbers < 1)).all())
        counts = torch.histc(numbers.float(), 20, 0, 1)
        assert chi_square_tail(counts, torch.full((20,), len(numbers) / 20)) > 1e-4
    correlation = torch.corrcoef(across.T).fill_diagonal_(0)
    assert float(correlation.abs().max()) < 4 / 2000**0.5


def chi_square_tail(counts: Tensor, expected: Tensor) -> float:
    """Probability of a fit at least this bad when the expectation is true."""
    statistic = ((counts.double() - expected.double()) ** 2 / expected.double()).sum()
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, statistic / 2))


# --- whole responses -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(make_model: MakeModel) -> Path:
    """A model with five end-of-sequence tokens, so that many responses end early."""
    folder = make_model(0)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": ENDS}))
    return folder


def load(folder: Path) -> LanguageModel:
    return load_model(
        ModelSpec(model=str(folder)), "student", device=torch.device("cpu"), dtype=torch.float32
    )


@pytest.fixture(scope="module")
def model(folder: Path) -> LanguageModel:
    return load(folder)


@pytest.fixture(scope="module")
def plain(folder: Path) -> PreTrainedModel:
    """The same weights through Transformers alone."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def ragged_requests(count: int, limit: int, seed: int = 0) -> list[Request]:
    generator = torch.Generator().manual_seed(seed)
    requests = []
    for prompt in range(count):
        length = int(torch.randint(1, 25, (1,), generator=generator))
        ids = torch.randint(VOCABULARY, (length,), generator=generator).tolist()
        requests.append(Request(ids, (seed, 0, prompt, 0), 1 + (prompt * 7) % limit))
    return requests


def sample(
    model: LanguageModel, requests: list[Request], slots: int, sampling: SamplingSection | None = None
) -> list[Response]:
    return TorchSampler(model, slots).sample(requests, sampling or SamplingSection(), lambda *_: None)


@torch.no_grad()
def row_logprobs(
    plain: PreTrainedModel, prompt: list[int], response: list[int], temperature: float = 1.0
) -> Tensor:
    """Log-probs of all tokens at each place of a response, by one plain forward; [R, V]."""
    logits_TV = plain(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
    return (logits_TV[len(prompt) - 1 : -1] / temperature).log_softmax(-1)


def test_pairs_of_tokens_have_their_exact_probabilities(model: LanguageModel, plain: PreTrainedModel) -> None:
    prompt, temperature, count = [9, 30, 4], 0.8, 4000
    exact: dict[tuple[int, ...], float] = {}
    first_V = row_logprobs(plain, prompt, [0], temperature)[0].exp()
    for first, probability in enumerate(first_V.tolist()):
        if first in ENDS:
            exact[(first,)] = probability
            continue
        second_V = row_logprobs(plain, prompt, [first, 0], temperature)[1].exp()
        exact |= {(first, second): probability * p for second, p in enumerate(second_V.tolist())}
    assert sum(exact.values()) == pytest.approx(1)

    requests = [Request(prompt, (0, 0, 0, number), 2) for number in range(count)]
    responses = sample(model, requests, 500, SamplingSection(temperature=temperature))
    seen = Counter(tuple(r.ids) for r in responses)
    assert seen.keys() <= exact.keys()
    common = [pair for pair in exact if exact[pair] * count >= 5]
    counts = [seen[pair] for pair in common]
    expected = [exact[pair] * count for pair in common]
    counts.append(count - sum(counts))
    expected.append(count - sum(expected))
    assert len(common) > 50
    assert chi_square_tail(torch.tensor(counts), torch.tensor(expected)) > 1e-3


def test_responses_end_at_eos_or_at_their_limit(model: LanguageModel) -> None:
    requests = ragged_requests(150, 25)
    responses = sample(model, requests, 50)
    for request, response in zip(requests, responses, strict=True):
        assert not set(ENDS) & set(response.ids[:-1])
        assert response.finished == (response.ids[-1] in ENDS)
        assert len(response.ids) == len(response.logprobs_R) <= request.max_response_tokens
        assert response.finished or len(response.ids) == request.max_response_tokens
    assert 30 < sum(r.finished for r in responses) < 120
    assert any(r.finished and len(r.ids) == 1 for r in responses), "a first token may end the response"


def assert_plain_logprobs(
    plain: PreTrainedModel, requests: list[Request], responses: list[Response], temperature: float
) -> None:
    for request, response in zip(requests, responses, strict=True):
        expected = row_logprobs(plain, request.prompt_ids, response.ids, temperature)
        found = expected[range(len(response.ids)), response.ids]
        torch.testing.assert_close(response.logprobs_R, found, rtol=0, atol=1e-4)


def test_logprobs_are_those_of_a_plain_forward(model: LanguageModel, plain: PreTrainedModel) -> None:
    requests = ragged_requests(60, 25, seed=2)
    responses = sample(model, requests, 9, SamplingSection(temperature=1.3, top_p=0.9))
    assert_plain_logprobs(plain, requests, responses, 1.3)


def test_long_responses_outgrow_the_first_cache(student_folder: Path, llama_folder: Path) -> None:
    for folder in (student_folder, llama_folder):
        requests = [Request([4, 5, 6], (0, 0, prompt, 0), 110) for prompt in range(12)]
        responses = sample(load(folder), requests, 12)
        assert max(len(r.ids) for r in responses) > 67, "3 prompt tokens + 64 is the first size of the cache"
        assert_plain_logprobs(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), requests, responses, 1.0
        )


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_results_do_not_depend_on_slots_order_or_prefill_batches(
    model: LanguageModel, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = ragged_requests(16, 20, seed=3)
    expected = sample(model, requests, 5)
    monkeypatch.setattr(engine, "PREFILL_TOKENS", 30)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(slots)).tolist()
    responses = sample(model, [requests[i] for i in order], slots)
    for place, row in enumerate(order):
        assert responses[place].ids == expected[row].ids
        assert responses[place].finished == expected[row].finished
        torch.testing.assert_close(responses[place].logprobs_R, expected[row].logprobs_R, rtol=0, atol=1e-5)


def test_same_call_gives_the_same_bits(model: LanguageModel) -> None:
    requests = ragged_requests(20, 20, seed=4)
    for one, other in zip(sample(model, requests, 6), sample(model, requests, 6), strict=True):
        assert one.ids == other.ids
        assert torch.equal(one.logprobs_R, other.logprobs_R)


@pytest.mark.parametrize("slots", [1, 5, 64])
def test_no_row_is_computed_after_its_end(
    model: LanguageModel, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = ragged_requests(16, 20, seed=5)
    forward, prefilled, decoded, widths = model.forward, [], [], []

    def counted(input_ids: Tensor, position_ids: Tensor, layout: PackedLayout | DecodeLayout) -> Tensor:
        if isinstance(layout, DecodeLayout):
            decoded.append(input_ids.numel())
            widths.append(len(input_ids))
        else:
            prefilled.extend(layout.lengths)
        return forward(input_ids, position_ids, layout)

    monkeypatch.setattr(model, "forward", counted)
    responses = sample(model, requests, slots)
    assert sorted(prefilled) == sorted(len(r.prompt_ids) for r in requests), "every prompt is prefilled once"
    drawn = sum(len(r.ids) for r in responses)
    assert len(prefilled) + sum(decoded) == drawn
    waiting = len(requests) - slots
    assert waiting <= 0 or widths[0] == slots, "a free slot is filled while requests wait"


@pytest.mark.parametrize("slots", [3, 8, 64])
def test_samples_of_one_prompt_share_its_prefill(
    model: LanguageModel, plain: PreTrainedModel, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [r.prompt_ids for r in ragged_requests(5, 1, seed=8)]
    requests = [
        Request(list(prompt), (8, 0, i, n), 1 + (7 * i + 5 * n) % 20)
        for i, prompt in enumerate(prompts)
        for n in range(6)
    ]
    alone = [sample(model, [request], 1)[0] for request in requests]
    forward, prefilled = model.forward, []

    def counted(input_ids: Tensor, position_ids: Tensor, layout: PackedLayout | DecodeLayout) -> Tensor:
        if isinstance(layout, PackedLayout):
            prefilled.extend(layout.lengths)
        return forward(input_ids, position_ids, layout)

    monkeypatch.setattr(model, "forward", counted)
    responses = sample(model, requests, slots)
    assert_plain_logprobs(plain, requests, responses, 1.0)
    assert [r.ids for r in responses] == [r.ids for r in alone]
    once = sorted(map(len, prompts))
    assert sorted(prefilled) == once if slots == 64 else len(once) <= len(prefilled) < len(requests)


def test_top_k_holds_at_every_token(model: LanguageModel, plain: PreTrainedModel) -> None:
    requests = ragged_requests(20, 15, seed=6)
    for request, response in zip(requests, sample(model, requests, 8, SamplingSection(top_k=2)), strict=True):
        best = row_logprobs(plain, request.prompt_ids, response.ids).topk(2).indices
        for token, allowed in zip(response.ids, best.tolist(), strict=True):
            assert token in allowed


def test_progress_counts_rows_and_tokens(model: LanguageModel) -> None:
    requests = ragged_requests(12, 20, seed=7)
    reports: list[tuple[int, int, int]] = []
    responses = TorchSampler(model, 4).sample(requests, SamplingSection(), lambda *now: reports.append(now))
    assert reports == sorted(reports)
    assert reports[-1] == (12, 12, sum(len(r.ids) for r in responses))


def test_each_response_is_told_once_as_soon_as_it_is_finished(model: LanguageModel) -> None:
    told: list[tuple[int, Response]] = []
    counts: list[tuple[int, int]] = []
    requests = [Request([4 + i, 9], (i,), limit) for i, limit in enumerate([1, 9, 3, 6])]
    responses = TorchSampler(model, 2).sample(
        requests,
        SamplingSection(),
        lambda done, total, tokens: counts.append((done, len(told))),
        lambda number, response: told.append((number, response)),
    )
    assert sorted(number for number, _ in told) == [0, 1, 2, 3]
    assert all(responses[number].ids == response.ids for number, response in told)
    assert all(done == seen for done, seen in counts)
    assert counts[0][0] < 4


def test_sampling_makes_no_graph(model: LanguageModel) -> None:
    assert not sample(model, ragged_requests(2, 5), 2)[0].logprobs_R.requires_grad


@pytest.mark.parametrize("damage", [float("nan"), float("inf")])
@pytest.mark.parametrize("vocabulary", [64, 300])
def test_logits_that_are_not_finite_stop_the_run(damage: float, vocabulary: int) -> None:
    logits_BV = torch.zeros(3, vocabulary)
    logits_BV[1, 7] = damage
    with pytest.raises(RunFailed, match="not finite"):
        draw(logits_BV, torch.full((3,), 0.5, dtype=torch.float64), 1.0, 0)
