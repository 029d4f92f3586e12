"""Operation counts against PyTorch's own counter of what is really executed: what runs is needed, nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gopd import prepack
from gopd.cost import Limits, ModelCost, Work, best_seconds, measure_limits
from gopd.model import LanguageModel
from gopd.packing import pack
from gopd.profile import scoring_work
from gopd.sampler import Request
from gopd.sampler.torch import TorchSampler
from gopd.sections import LoraSection, SamplingSection
from tiny import CPU, Bench, load, make_rollouts, opd_recipe

PROMPTS, RESPONSES = [7, 3, 20, 1], [5, 11, 1, 2]
LINEAR = ("aten.mm", "aten.addmm")


@contextmanager
def counted(products: dict[str, float]) -> Iterator[None]:
    """Adds what products of matrices cost inside, by operator."""
    with FlopCounterMode(display=False) as counter:
        yield
    for operator, flops in counter.get_flop_counts()["Global"].items():
        products[str(operator)] = products.get(str(operator), 0) + flops


def linear(products: dict[str, float]) -> float:
    return sum(products.get(name, 0) for name in LINEAR)


def rows(prompts: list[int], responses: list[int]) -> tuple[list[list[int]], list[list[int]]]:
    return [[4 + n % 50 for n in range(p)] for p in prompts], [[9] * r for r in responses]


@pytest.mark.parametrize("folder_name", ["student_folder", "llama_folder"])
def test_a_forward_pass_costs_what_the_counter_says(folder_name: str, request: pytest.FixtureRequest) -> None:
    model = load(request.getfixturevalue(folder_name))
    cost, products = ModelCost.of(model), dict[str, float]()
    packed = pack(*rows(PROMPTS, RESPONSES), CPU)
    with counted(products), torch.no_grad():
        model.project(packed).logits(slice(None), 1.0)
    tokens = sum(PROMPTS) + sum(RESPONSES) - len(PROMPTS)
    assert linear(products) == 2 * tokens * cost.body + 2 * sum(RESPONSES) * cost.head
    config = model.module.config
    heads = config.num_hidden_layers * config.num_attention_heads * config.head_dim
    pairs = sum(sum(range(1, p + r)) for p, r in zip(PROMPTS, RESPONSES, strict=True))
    assert cost.forward(PROMPTS, RESPONSES).flops == linear(products) + 4 * heads * pairs


def test_shared_prompts_are_computed_once(student_folder: Path) -> None:
    model = load(student_folder)
    cost, products = ModelCost.of(model), dict[str, float]()
    prompts, responses = [6, 6, 6, 9, 9, 9], [5, 1, 3, 2, 2, 14]
    packed = pack([[p] * p for p in prompts], [[9] * r for r in responses], CPU)
    with counted(products), torch.no_grad():
        model.project(packed).logits(slice(None), 1.0)
    tokens = 6 + 9 + sum(responses) - 6
    assert linear(products) == 2 * tokens * cost.body + 2 * sum(responses) * cost.head
    pairs = sum(range(1, 7)) + sum(range(1, 10))
    pairs += sum(sum(range(p + 1, p + r)) for p, r in zip(prompts, responses, strict=True))
    work = cost.forward(prompts, responses, samples=3)
    assert work.flops == linear(products) + 4 * cost.attention * pairs
    assert cost.update(prompts, responses, samples=3) == work.times(3)


def test_an_update_costs_what_the_counter_says(student_folder: Path, teacher_folder: Path) -> None:
    bench = Bench.of(opd_recipe(student_folder, {"a": {"model": str(teacher_folder)}}))
    rollouts = make_rollouts(bench.recipe, bench.student, ["a"])
    scores = bench.score(rollouts)
    terms, products = bench.terms(rollouts, scores, True), dict[str, float]()
    with counted(products):
        bench.learner.update(rollouts, scores, terms)
    cost = ModelCost.of(bench.student)
    prompts, responses = (
        [len(r.prompt_ids) for r in rollouts],
        [len(r.response_ids) for r in rollouts],
    )
    tokens = sum(prompts) + sum(responses) - len(rollouts)
    head = 2 * sum(responses) * cost.head
    assert linear(products) == 6 * tokens * cost.body + 2 * head, (
        "the head's own gradient is made in place: uncounted"
    )
    assert cost.update(prompts, responses).flops == 3 * cost.forward(prompts, responses).flops


@pytest.mark.parametrize(("samples", "slots"), [(1, 8), (3, 9), (1, 2), (3, 6)])
def test_sampling_costs_what_the_counter_says(
    student_folder: Path, samples: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counter does not know prepacked layers, so the plain ones are counted."""
    monkeypatch.setattr(prepack, "_library", lambda: None)
    model = load(student_folder)
    prompts = [p for p in (5, 9, 2) for _ in range(samples)]
    requests = [
        Request([4 + i // samples] * p, (0, i), 3 + 2 * (i % samples) if samples == 3 else 4 + i)
        for i, p in enumerate(prompts)
    ]
    products = dict[str, float]()
    with counted(products):
        responses = TorchSampler(model, slots).sample(requests, SamplingSection(), lambda *_: None)
    lengths = [len(r.ids) for r in responses]
    cost = ModelCost.of(model)
    fed = sum(prompts[::samples]) + sum(n - 1 for n in lengths)
    assert linear(products) == 2 * fed * cost.body + 2 * sum(lengths) * cost.head
    work = cost.sampling(prompts, lengths, samples=samples, slots=slots)
    attention = (
        4
        * cost.attention
        * (
            sum(p * (p + 1) / 2 for p in prompts[::samples])
            + sum(p + i for p, n in zip(prompts, lengths, strict=True) for i in range(1, n))
        )
    )
    assert work.flops == linear(products) + attention


def test_sampling_reads_weights_once_a_step_and_each_row_its_cache() -> None:
    cost = ModelCost(body=1000, head=100, attention=8, cache=6, element=4)
    work = cost.sampling([10, 10], [3, 5], slots=2)
    assert work.bytes == 4 * (5 * 1100 + 6 * (10 + 11 + 12 + 10 + 11 + 12 + 13 + 14))
    assert cost.sampling([10, 10], [3, 5], slots=1).bytes - work.bytes == 4 * 3 * 1100


@pytest.mark.parametrize("estimator", ["sampled", "full"])
@pytest.mark.parametrize("scale", [1.0, 1.25])
def test_scoring_costs_what_the_counter_says(
    student_folder: Path, teacher_folder: Path, scale: float, estimator: str
) -> None:
    teachers = {
        "a": {"model": str(teacher_folder), "view": {"template": "{prompt} so: {solution}"}},
        "b": {"model": str(student_folder), "reward_scale": 1.0},
    }
    objective = {"reward_scale": scale, "estimator": estimator}
    bench = Bench.of(opd_recipe(student_folder, teachers, objective=objective))
    rollouts, products = make_rollouts(bench.recipe, bench.student, ["a", "b"]), dict[str, float]()
    with counted(products):
        bench.score(rollouts)
    bodies, heads = scoring_work(bench.scorer, rollouts)
    attention = 0.0
    for name, seats in bench.scorer.routes.items():
        mine = [r for r in rollouts if r.prompt.route == name]
        for seat in (seats.teacher, seats.reference):
            if seat is not None:
                for ids, r in zip(bench.scorer.prompt_ids(seat, mine), mine, strict=True):
                    fed = len(ids) + len(r.response_ids) - 1
                    attention += 4 * ModelCost.of(seat.model).attention * fed * (fed + 1) / 2
    assert linear(products) == bodies.flops - attention + (heads.flops if estimator == "sampled" else 0)


def test_adapters_count_as_what_they_are(student_folder: Path) -> None:
    model: LanguageModel = load(student_folder)
    bare = ModelCost.of(model)
    model.add_lora(LoraSection(rank=2, target_modules=("q_proj",)), seed=0)
    config = model.module.config
    width = config.num_attention_heads * config.head_dim
    more = config.num_hidden_layers * 2 * (config.hidden_size + width)
    assert ModelCost.of(model).body == bare.body + more


def test_the_larger_of_products_and_memory_binds() -> None:
    limits = Limits(flops_per_second=100.0, bytes_per_second=10.0)
    assert Work(200, 10).seconds(limits) == 2 and Work(200, 10).bound(limits) == "products"
    assert Work(200, 50).seconds(limits) == 5 and Work(200, 50).bound(limits) == "memory"
    assert (Work(1, 2) + Work(3, 4)).times(2) == Work(8, 12)


def test_limits_are_measured() -> None:
    limits = measure_limits(CPU, rows=64, width=64)
    assert 1e8 < limits.flops_per_second < 1e15 and 1e8 < limits.bytes_per_second < 1e14


def test_the_best_run_counts() -> None:
    waits = iter([0.2, 0.05, 0.01, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1])

    def call() -> torch.Tensor:
        time.sleep(next(waits))
        return torch.zeros(1)

    assert 0.01 <= best_seconds(call, CPU, seconds=0.3) < 0.05
