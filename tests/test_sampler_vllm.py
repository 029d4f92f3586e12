"""The vLLM sampler, with the real engine: one of a single worker that sleeps between uses, one of two workers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import EOS, VOCABULARY, MakeModel
from gopd.errors import BadInput, RunFailed
from gopd.model import LanguageModel
from gopd.sampler import Request, Response, vllm_setup
from gopd.sampler import vllm as engine
from gopd.sampler.torch import TorchSampler, restrict
from gopd.sampler.vllm import VllmSampler
from gopd.sampler.vllm_setup import check_vllm
from gopd.sections import ModelSpec, SamplingSection, VllmSection
from tiny import CPU, load, plain64, plain64_now, row_logprobs

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

GREEDY = SamplingSection(top_k=1)
MAX_TOKENS = 160
ENDS = [EOS, 11]


@pytest.fixture(scope="module")
def folder(make_model: MakeModel) -> Path:
    """A tiny random Qwen3 with tied embeddings, and heads that vLLM has CPU kernels for."""
    return make_model(0, head_dim=32)


@pytest.fixture(scope="module")
def two_heads_folder(make_model: MakeModel) -> Path:
    """A tiny random Llama with a head of its own; 4 query and 2 key-value heads."""
    return make_model(3, "llama", hidden_size=128, head_dim=32)


def process_state() -> tuple[Any, ...]:
    return dict(os.environ), os.sched_getaffinity(0), torch.get_num_threads(), torch.set_num_threads


def start(folder: Path, **section: Any) -> VllmSampler:
    return VllmSampler(
        ModelSpec(model=str(folder)),
        ENDS,
        VllmSection(max_sequences=16, **section),
        max_tokens=MAX_TOKENS,
        device=CPU,
        dtype=torch.float32,
        seed=0,
    )


@pytest.fixture(scope="module")
def started(folder: Path) -> Iterator[VllmSampler]:
    before = process_state()
    sampler = start(folder, sleep=True, max_batched_tokens=20)
    assert process_state() == before, "vLLM has left traces in the learner's process"
    yield sampler
    sampler.close()


@pytest.fixture(scope="module")
def flying(folder: Path) -> Iterator[VllmSampler]:
    sampler = start(folder, in_flight_updates=True)
    yield sampler
    sampler.close()


@pytest.fixture
def sampler(started: VllmSampler, folder: Path) -> VllmSampler:
    """The engine with the folder's weights, whatever the test before left in it."""
    started.update(load(folder).module.named_parameters(), 1)
    return started


@pytest.fixture(scope="module")
def parallel(two_heads_folder: Path) -> Iterator[VllmSampler]:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two workers need two CPU cores")
    sampler = start(two_heads_folder, tensor_parallel=2)
    yield sampler
    sampler.close()


def requests_of(count: int, limit: int = 24, step: int = 0) -> list[Request]:
    """Prompts of 1 to 9 tokens, no two alike."""
    prompts = [[4 + (7 * i + j * j) % (VOCABULARY - 4) for j in range(1 + i % 9)] for i in range(count)]
    return [Request(prompt, (0, step, i, 0), limit) for i, prompt in enumerate(prompts)]


def sample(
    sampler: VllmSampler | TorchSampler, requests: Sequence[Request], sampling: SamplingSection
) -> list[Response]:
    return sampler.sample(requests, sampling, lambda *_: None)


def trainers(
    student: LanguageModel, requests: Sequence[Request], sampling: SamplingSection
) -> list[list[int]]:
    """What the embedded sampler answers, with the same ends."""
    student.module.generation_config.eos_token_id = ENDS
    return [r.ids for r in sample(TorchSampler(student, 8), requests, sampling)]


def perturbed(folder: Path, seed: int = 1) -> LanguageModel:
    """A student that has learned something: every weight has moved."""
    student = load(folder)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in student.module.parameters():
            weight += 0.3 * weight.std() * torch.randn(weight.shape, generator=generator)
    return student


@torch.no_grad()
def gap(model: Any, requests: Sequence[Request], responses: Sequence[Response], temperature: float) -> float:
    """The largest difference between the responses' log-probs and Transformers' own in float64."""
    gaps = []
    for request, response in zip(requests, responses, strict=True):
        expected_RV = row_logprobs(model, request.prompt_ids, response.ids, temperature)
        expected_R = expected_RV.gather(1, torch.tensor(response.ids)[:, None]).squeeze(1)
        gaps.append((expected_R - response.logprobs_R).abs().max())
    return float(torch.stack(gaps).max())


# --- responses ------------------------------------------------------------------------------------------------------


def test_greedy_is_the_trainers_before_and_after_an_update(sampler: VllmSampler, folder: Path) -> None:
    requests, student = requests_of(12), perturbed(folder)
    before, after = trainers(load(folder), requests, GREEDY), trainers(student, requests, GREEDY)
    assert before != after, "the same answer from both would prove nothing"
    assert [r.ids for r in sample(sampler, requests, GREEDY)] == before
    sampler.update(student.module.named_parameters(), 1)
    assert [r.ids for r in sample(sampler, requests, GREEDY)] == after


@pytest.mark.parametrize(
    ("temperature", "top_p", "top_k"),
    [(1.0, 1.0, 0), (0.6, 1.0, 0), (1.7, 1.0, 0), (1.0, 0.8, 0), (1.0, 1.0, 5), (0.6, 0.9, 8), (1.7, 0.5, 0)],
)
def test_logprobs_are_of_the_whole_vocabulary_at_the_temperature(
    sampler: VllmSampler, folder: Path, temperature: float, top_p: float, top_k: int
) -> None:
    requests = requests_of(12)
    sampling = SamplingSection(temperature=temperature, top_p=top_p, top_k=top_k)
    responses = sample(sampler, requests, sampling)
    assert gap(plain64(folder), requests, responses, temperature) < 1e-4
    for request, response in zip(requests, responses, strict=True):
        with torch.no_grad():
            logprobs_RV = row_logprobs(plain64(folder), request.prompt_ids, response.ids, temperature)
        kept_RV = restrict(logprobs_RV, top_p, top_k)
        assert kept_RV.gather(1, torch.tensor(response.ids)[:, None]).isfinite().all()


def test_every_end_ends_and_is_part_of_the_response(sampler: VllmSampler) -> None:
    responses = sample(sampler, requests_of(64), SamplingSection(temperature=1.5))
    ended = [r for r in responses if r.finished]
    assert {r.ids[-1] for r in ended} == set(ENDS)
    assert all(end not in r.ids[:-1] for r in ended for end in ENDS)
    cut = [r for r in responses if not r.finished]
    assert cut and all(len(r.ids) == 24 and not set(ENDS).intersection(r.ids) for r in cut)
    assert all(r.logprobs_R.shape == (len(r.ids),) for r in responses)
    assert all(r.logprobs_R.dtype == torch.float32 for r in responses)


def test_responses_come_in_order_and_are_reported_as_they_finish(sampler: VllmSampler) -> None:
    requests = [Request(r.prompt_ids, r.stream, 1 + (5 * i) % 23) for i, r in enumerate(requests_of(40))]
    reported: dict[int, Response] = {}
    progress: list[tuple[int, int, int]] = []

    def finished(number: int, response: Response) -> None:
        assert number not in reported
        reported[number] = response

    responses = sampler.sample(requests, SamplingSection(), lambda *now: progress.append(now), finished)
    assert [reported[i] for i in range(40)] == responses
    assert list(reported) != sorted(reported), "rows of different length do not finish in order"
    assert all(len(r.ids) <= q.max_response_tokens for q, r in zip(requests, responses, strict=True))
    assert progress[-1] == (40, 40, sum(len(r.ids) for r in responses))
    assert progress == sorted(progress) and progress[0][0] < 40


def test_a_prompt_that_fills_the_context_is_answered(sampler: VllmSampler, folder: Path) -> None:
    requests = [Request([4 + (3 * j + i) % 50 for j in range(MAX_TOKENS - 3)], (i,), 3) for i in range(20)]
    responses = sample(sampler, requests, SamplingSection())
    assert gap(plain64(folder), requests, responses, 1.0) < 1e-4


# --- randomness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), [(1.0, 1.0, 0), (0.7, 1.0, 0), (1.3, 0.9, 12)])
def test_tokens_have_their_exact_frequencies(
    sampler: VllmSampler, folder: Path, temperature: float, top_p: float, top_k: int
) -> None:
    prompt, count = [9, 4, 30], 3000
    requests = [Request(prompt, (5, 1, 0, n), 2) for n in range(count)]
    sampling = SamplingSection(temperature=temperature, top_p=top_p, top_k=top_k)
    responses = sample(sampler, requests, sampling)
    first = torch.tensor([r.ids[0] for r in responses])
    assert_frequencies(first, next_probs(folder, prompt, sampling))
    # What follows the likeliest first token shows that a row's draws do not repeat.
    likeliest = int(first.bincount().argmax())
    second = torch.tensor([r.ids[1] for r in responses if r.ids[0] == likeliest])
    assert_frequencies(second, next_probs(folder, [*prompt, likeliest], sampling))


@torch.no_grad()
def next_probs(folder: Path, prompt: list[int], sampling: SamplingSection) -> Tensor:
    logits_V = plain64(folder)(input_ids=torch.tensor([prompt])).logits[0, -1] / sampling.temperature
    return restrict(logits_V[None], sampling.top_p, sampling.top_k)[0].softmax(-1)


def assert_frequencies(ids: Tensor, probs_V: Tensor) -> None:
    """Chi-square; tokens expected fewer than 8 times count together. The bound is five standard deviations."""
    counts_V, expected_V = ids.bincount(minlength=len(probs_V)).double(), len(ids) * probs_V
    assert not counts_V[expected_V == 0].any()
    often_V = expected_V >= 8
    counts = torch.cat([counts_V[often_V], counts_V[~often_V].sum()[None]])
    expected = torch.cat([expected_V[often_V], expected_V[~often_V].sum()[None]]).clamp_min(1e-9)
    freedom = int(often_V.sum())
    assert freedom >= 3, "too few tokens to tell"
    statistic = float(((counts - expected) ** 2 / expected.clamp_min(1)).sum())
    assert statistic < freedom + 5 * (2 * freedom) ** 0.5, statistic


def test_a_response_depends_on_its_stream_and_not_on_the_batch(sampler: VllmSampler) -> None:
    requests = requests_of(20)
    together = sample(sampler, requests, SamplingSection())
    backwards = sample(sampler, requests[::-1], SamplingSection())[::-1]
    alone = [sample(sampler, [request], SamplingSection())[0] for request in requests[:4]]
    assert [r.ids for r in together] == [r.ids for r in backwards]
    assert [r.ids for r in together[:4]] == [r.ids for r in alone]
    other = sample(sampler, requests_of(20, step=1), SamplingSection())
    assert sum(a.ids == b.ids for a, b in zip(together, other, strict=True)) < 4


# --- weights --------------------------------------------------------------------------------------------------------


def test_an_update_in_many_pieces_is_whole(
    sampler: VllmSampler, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, requests = perturbed(folder), requests_of(12)
    monkeypatch.setattr(engine, "CHUNK_BYTES", 5000)
    left = len(os.listdir("/proc/self/fd"))
    backwards = reversed(list(student.module.named_parameters()))
    sampler.update(((name, weight) for name, weight in backwards), 1)
    assert len(os.listdir("/proc/self/fd")) == left
    responses = sample(sampler, requests, SamplingSection())
    assert gap(plain64_now(folder, student), requests, responses, 1.0) < 1e-4
    assert gap(plain64(folder), requests, responses, 1.0) > 0.1, "old weights would pass, too"


def test_an_interruption_leaves_no_rows_behind(sampler: VllmSampler, folder: Path) -> None:
    def interrupt(number: int, response: Response) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.sample(requests_of(40), SamplingSection(), lambda *_: None, interrupt)
    sampler.update(load(folder).module.named_parameters(), 1)
    assert [r.ids for r in sample(sampler, requests_of(5), GREEDY)] == trainers(
        load(folder), requests_of(5), GREEDY
    )


def test_weights_that_are_not_numbers_fail_the_run(sampler: VllmSampler, folder: Path) -> None:
    student = load(folder)  # to be the last test of this engine: they stay in its cache
    with torch.no_grad():
        next(iter(student.module.parameters()))[:] = torch.nan
    sampler.update(student.module.named_parameters(), 1)
    with pytest.raises(RunFailed, match="not finite"):
        sample(sampler, requests_of(4), SamplingSection())


# --- two workers ----------------------------------------------------------------------------------------------------


def test_two_workers_share_the_weights(parallel: VllmSampler, two_heads_folder: Path) -> None:
    requests, sampling = requests_of(12), SamplingSection(temperature=0.8, top_p=0.9)
    old = sample(parallel, requests, sampling)
    assert gap(plain64(two_heads_folder), requests, old, 0.8) < 1e-4
    student = perturbed(two_heads_folder)
    parallel.update(student.module.named_parameters(), 1)
    new = sample(parallel, requests, sampling)
    now = plain64_now(two_heads_folder, student)
    assert gap(now, requests, new, 0.8) < 1e-4 < 0.1 < gap(now, requests, old, 0.8)
    assert [r.ids for r in sample(parallel, requests, GREEDY)] == trainers(student, requests, GREEDY)


def test_prefixes_of_old_weights_are_not_used(
    parallel: VllmSampler, two_heads_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = [Request([4 + (3 * j) % 50 for j in range(150)], (0,), 5)]

    def gap_after(seed: int) -> float:
        student = perturbed(two_heads_folder, seed)
        parallel.update(student.module.named_parameters(), 1)
        responses = sample(parallel, long, SamplingSection())
        return gap(plain64_now(two_heads_folder, student), long, responses, 1.0)

    sample(parallel, long, SamplingSection())
    assert gap_after(2) < 1e-4
    monkeypatch.setattr(parallel._llm, "reset_prefix_cache", lambda **_: True)
    assert gap_after(3) > 1e-2, "the prompt was not cached: nothing is proved"


def test_an_update_without_some_weight_is_an_error(parallel: VllmSampler, two_heads_folder: Path) -> None:
    weights = dict(load(two_heads_folder).module.named_parameters())
    del weights["model.norm.weight"]
    with pytest.raises(RunFailed, match=r"1 weights were not sent, the first is model\.norm\.weight"):
        parallel.update(weights.items(), 1)


@pytest.mark.parametrize("sampling", [GREEDY, SamplingSection(temperature=0.8)], ids=["greedy", "drawn"])
def test_weights_change_in_the_middle_of_responses(
    flying: VllmSampler, folder: Path, sampling: SamplingSection
) -> None:
    """Every token is drawn by the weights whose version it carries, as if those had read all that stands before it."""
    students = [load(folder), perturbed(folder, 1), perturbed(folder, 2)]
    flying.update(students[0].module.named_parameters(), 0)
    versions = iter([(150, 1), (260, 2)])
    due, version = next(versions)

    def progress(done: int, total: int, tokens: int) -> None:
        nonlocal due, version
        if tokens >= due:
            flying.update(students[version].module.named_parameters(), version)
            due, version = next(versions, (10**9, 0))

    requests = requests_of(12, limit=60)
    responses = flying.sample(requests, sampling, progress)
    models = [plain64_now(folder, student) for student in students]
    swapped = set[tuple[int, ...]]()
    for request, response in zip(requests, responses, strict=True):
        assert response.versions is not None
        (places, told), length = zip(*response.versions, strict=True), len(response.ids)
        assert places[0] == 0 and list(told) == sorted(set(told))
        found = [told[sum(first <= i for first in places) - 1] for i in range(length)]
        swapped.add(tuple(sorted(set(found))))
        versions_R, ids_R = torch.tensor(found), torch.tensor(response.ids)
        with torch.no_grad():
            logprobs_SRV = torch.stack(
                [row_logprobs(m, request.prompt_ids, response.ids, sampling.temperature) for m in models]
            )
        own_RV = logprobs_SRV[versions_R, torch.arange(len(found))]
        assert (own_RV.gather(1, ids_R[:, None])[:, 0] - response.logprobs_R).abs().max() < 1e-4
        if sampling == GREEDY:
            assert own_RV.argmax(-1).tolist() == response.ids
    assert (0, 1, 2) in swapped, "no response saw all three"


# --- bad input ------------------------------------------------------------------------------------------------------


def check(folder: Path, device: torch.device = CPU, **section: Any) -> None:
    check_vllm(ModelSpec(model=str(folder)), VllmSection(**section), device)


def test_a_good_model_passes(folder: Path) -> None:
    check(folder)


def test_vllm_that_is_missing_old_or_new(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vllm.__version__", "0.33.1+cpu")
    check(folder)
    assert "newer than 0.32" in caplog.text
    monkeypatch.setattr("vllm.__version__", "0.9.2")
    with pytest.raises(BadInput, match=r"vLLM 0\.9\.2 is too old"):
        check(folder)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"not installed; install gopd\[vllm\]"):
        check(folder)


def test_devices_that_are_not_there(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"made for a CPU, but train\.device is cuda"):
        check(folder, torch.device("cuda"))
    with pytest.raises(BadInput, match=r"tensor_parallel is 4096, but this machine has \d+ CPU cores"):
        check(folder, tensor_parallel=4096)


@pytest.mark.parametrize(
    ("parallel", "sizes", "said"),
    [
        (3, {}, "does not divide the 4 attention heads"),
        (4, {"intermediate_size": 50}, "does not divide the 50 MLP units"),
        (4, {"num_attention_heads": 12, "num_key_value_heads": 6}, "does not divide the 6 key-value heads"),
    ],
)
def test_models_that_cannot_be_split(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parallel: int,
    sizes: dict[str, int],
    said: str,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    with pytest.raises(BadInput, match=said):
        check(with_config(folder, tmp_path, **sizes), tensor_parallel=parallel)
    check(
        with_config(folder, tmp_path), tensor_parallel=4
    )  # more workers than key-value heads: each has a copy


def test_models_that_vllm_cannot_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not know the architecture NoSuchForCausalLM"):
        check(with_config(folder, tmp_path, architectures=["NoSuchForCausalLM"]))
    with pytest.raises(BadInput, match="no kernel for heads of 24 numbers"):
        check(with_config(folder, tmp_path, head_dim=24))


def test_no_room_for_one_row(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"raise memory_share or lower data\.max_response_tokens"):
        start(folder, memory_share=1e-6)


def test_the_cache_is_no_larger_than_its_rows(folder: Path) -> None:
    spec, section = ModelSpec(model=str(folder)), VllmSection(max_sequences=3)
    blocks = 3 * 2 + 2  # 160 tokens take two blocks of 128
    assert (
        vllm_setup.cache_bytes(spec, section, MAX_TOKENS, torch.float32)
        == blocks * 128 * (2 * 2 * 2 * 32) * 4
    )


def with_config(folder: Path, where: Path, **values: Any) -> Path:
    """The folder with some of its configuration changed; good enough for checks, not for loading."""
    target = where / "changed"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | values))
    return target
