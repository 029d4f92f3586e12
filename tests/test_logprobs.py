from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gopd import logprobs, objective
from gopd.logprobs import Chunk, Projection, Scratch, Target, linear_logprobs, linear_loss, token_chunks

TOKENS, WIDTH, VOCABULARY = 10, 6, 23
FOUR_TOKENS = 4 * 4 * VOCABULARY
"""Chunk size that makes 10 tokens into chunks of 4, 4 and 2."""
DOUBLE = torch.float64
Brute = Callable[[Tensor], Tensor]


def projection(seed: int, tokens: int = TOKENS, vocabulary: int = VOCABULARY) -> Projection:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, WIDTH, generator=generator)
    return Projection(hidden, torch.randn(vocabulary, WIDTH, generator=generator))


def brute(of: Projection, temperature: float) -> Tensor:
    """Log-softmax of the full logits in float64."""
    return (of.hidden_TD.double() @ of.head_VD.double().T / temperature).log_softmax(-1)


def ids(tokens: int = TOKENS, vocabulary: int = VOCABULARY) -> Tensor:
    return torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(99))


@pytest.fixture(params=[1, FOUR_TOKENS, 2**20], ids=["one-token", "uneven", "one-chunk"])
def chunk_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", request.param)
    return int(request.param)


def test_chunks_cover_all_tokens_once_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", FOUR_TOKENS)
    assert list(token_chunks(TOKENS, VOCABULARY)) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert list(token_chunks(2, 10**6)) == [slice(0, 1), slice(1, 2)]
    assert list(token_chunks(0, VOCABULARY)) == []


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.8])
def test_linear_logprobs(chunk_bytes: int, temperature: float) -> None:
    of = projection(0)
    found = linear_logprobs(of, ids(), temperature)
    assert found.dtype == torch.float32
    torch.testing.assert_close(
        found.double(), brute(of, temperature)[range(TOKENS), ids()], rtol=1e-5, atol=1e-5
    )


def test_no_tokens_no_logprobs() -> None:
    assert linear_logprobs(projection(0, tokens=0), ids(0), 1.0).shape == (0,)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.25, 2.0])
def test_target_scores(chunk_bytes: int, scale: float, temperature: float) -> None:
    teacher, reference = projection(1), projection(2)
    seen = Target(teacher, reference, scale).score(ids(), temperature)
    log_T, log_R = brute(teacher, temperature), brute(reference, temperature)
    partition = (log_T.exp() ** scale * log_R.exp() ** (1 - scale)).sum(-1).log()
    assert seen.reference_logprobs_T is not None
    assert seen.log_partition_T is not None
    near = {"rtol": 1e-5, "atol": 2e-5}
    torch.testing.assert_close(seen.teacher_logprobs_T.double(), log_T[range(TOKENS), ids()], **near)
    torch.testing.assert_close(seen.reference_logprobs_T.double(), log_R[range(TOKENS), ids()], **near)
    torch.testing.assert_close(seen.log_partition_T.double(), partition, **near)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 1.25])
def test_target_chunk_is_the_normalised_target(scale: float, temperature: float) -> None:
    teacher, reference = projection(1), None if scale == 1 else projection(2)
    tokens = slice(3, 8)
    found, seen = Target(teacher, reference, scale).chunk(ids()[tokens], tokens, temperature, Scratch())
    log_T = brute(teacher, temperature)
    log_R = log_T if reference is None else brute(reference, temperature)
    expected = (scale * log_T + (1 - scale) * log_R).log_softmax(-1)[tokens]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(
        seen.teacher_logprobs_T.double(), log_T[range(3, 8), ids()[tokens]], rtol=1e-5, atol=2e-5
    )


def test_unit_scale_has_teacher_scores_only(chunk_bytes: int) -> None:
    seen = Target(projection(1), None, 1.0).score(ids(), 1.0)
    assert seen.reference_logprobs_T is None
    assert seen.log_partition_T is None
    expected = brute(projection(1), 1.0)[range(TOKENS), ids()]
    torch.testing.assert_close(seen.teacher_logprobs_T.double(), expected, rtol=1e-5, atol=1e-5)


def test_scoring_leaves_its_inputs_alone_and_makes_no_graph() -> None:
    teacher, reference = projection(1), projection(2)
    teacher.head_VD.requires_grad_()
    before = teacher.hidden_TD.clone()
    seen = Target(teacher, reference, 1.25).score(ids(), 0.7)
    assert not seen.teacher_logprobs_T.requires_grad
    assert not linear_logprobs(teacher, ids(), 0.7).requires_grad
    assert torch.equal(teacher.hidden_TD, before)


# --- the loss through the head ---------------------------------------------------------------------------------------

ADVANTAGE = torch.randn(TOKENS, generator=torch.Generator().manual_seed(5))
WEIGHT = torch.rand(TOKENS, generator=torch.Generator().manual_seed(6))
TARGET = Target(projection(1), projection(2), 1.25)


def sampled(chunk: Chunk) -> tuple[Tensor, Tensor]:
    drawn = ids()[chunk.tokens]
    own_C = chunk.logprobs_CV[range(len(drawn)), drawn]
    return objective.policy_gradient(chunk.probs_CV, own_C, drawn, (WEIGHT * ADVANTAGE)[chunk.tokens])


def full(chunk: Chunk) -> tuple[Tensor, Tensor]:
    target_CV, _ = TARGET.chunk(ids()[chunk.tokens], chunk.tokens, 0.7, chunk.scratch)
    loss_C, gradient_CV = objective.reverse_kl(chunk.logprobs_CV, chunk.probs_CV, target_CV)
    return loss_C * WEIGHT[chunk.tokens], gradient_CV * WEIGHT[chunk.tokens, None]


def topk(chunk: Chunk) -> tuple[Tensor, Tensor]:
    target_CV, _ = TARGET.chunk(ids()[chunk.tokens], chunk.tokens, 0.7, chunk.scratch)
    loss_C, gradient_CV = objective.topk_reverse_kl(chunk.logprobs_CV, chunk.probs_CV, target_CV, 5)
    return loss_C * WEIGHT[chunk.tokens], gradient_CV * WEIGHT[chunk.tokens, None]


def log_target() -> Tensor:
    assert TARGET.reference is not None
    return (1.25 * brute(TARGET.teacher, 0.7) - 0.25 * brute(TARGET.reference, 0.7)).log_softmax(-1)


def brute_sampled(own_TV: Tensor) -> Tensor:
    return -(ADVANTAGE.double() * WEIGHT.double() * own_TV[range(TOKENS), ids()]).sum()


def brute_full(own_TV: Tensor) -> Tensor:
    return (WEIGHT.double() * (own_TV.exp() * (own_TV - log_target())).sum(-1)).sum()


def brute_topk(own_TV: Tensor) -> Tensor:
    inside = torch.zeros(own_TV.shape, dtype=torch.bool).scatter(-1, own_TV.topk(5).indices, True)
    p, q = own_TV.exp(), log_target().exp()
    p_rest, q_rest = (x.masked_fill(inside, 0).sum(-1) for x in (p, q))
    kl = (p * (p / q).log()).masked_fill(~inside, 0).sum(-1) + p_rest * (p_rest / q_rest).log()
    return (WEIGHT.double() * kl).sum()


ESTIMATORS = {"sampled": (sampled, brute_sampled), "full": (full, brute_full), "topk": (topk, brute_topk)}


@pytest.mark.parametrize("name", list(ESTIMATORS))
def test_linear_loss_and_its_gradients(chunk_bytes: int, name: str) -> None:
    chunk_loss, brute_loss = ESTIMATORS[name]
    of = projection(0)
    hidden, head = of.hidden_TD.requires_grad_(), of.head_VD.requires_grad_()
    loss = linear_loss(of, chunk_loss, 0.7)
    (3 * loss).backward()

    hidden_64 = hidden.detach().double().requires_grad_()
    head_64 = head.detach().double().requires_grad_()
    expected = brute_loss((hidden_64 @ head_64.T / 0.7).log_softmax(-1))
    (3 * expected).backward()
    assert hidden.grad is not None
    assert head.grad is not None
    assert hidden_64.grad is not None
    assert head_64.grad is not None
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden.grad.double(), hidden_64.grad, rtol=1e-4, atol=3e-5)
    torch.testing.assert_close(head.grad.double(), head_64.grad, rtol=1e-4, atol=3e-5)


def test_gradients_add_up_over_micro_batches() -> None:
    """A head used twice, as with gradient accumulation and tied embeddings, gets both gradients."""
    of = projection(0)
    head = of.head_VD.requires_grad_()
    both = linear_loss(of, sampled, 1.0)
    (once,) = torch.autograd.grad(both, head)
    for _ in range(2):
        linear_loss(of, sampled, 1.0).backward()
    assert head.grad is not None
    torch.testing.assert_close(head.grad, 2 * once)


def test_frozen_head_gets_no_gradient() -> None:
    of = projection(0)
    hidden = of.hidden_TD.requires_grad_()
    linear_loss(of, sampled, 1.0).backward()
    assert of.head_VD.grad is None
    assert hidden.grad is not None


def test_half_precision_hidden_states_with_a_float32_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of the float32 head are summed over chunks in float32; the log-softmax runs in float32."""
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", FOUR_TOKENS)
    of = projection(0)
    hidden, head = of.hidden_TD.bfloat16().requires_grad_(), of.head_VD.requires_grad_()
    seen: list[torch.dtype] = []

    def chunk_loss(chunk: Chunk) -> tuple[Tensor, Tensor]:
        seen.append(chunk.logprobs_CV.dtype)
        return sampled(chunk)

    linear_loss(Projection(hidden, head), chunk_loss, 1.0).backward()
    hidden_64, head_64 = hidden.detach().double().requires_grad_(), head.detach().double().requires_grad_()
    brute_sampled((hidden_64 @ head_64.T).log_softmax(-1)).backward()
    assert hidden.grad is not None
    assert head.grad is not None
    assert hidden_64.grad is not None
    assert head_64.grad is not None
    assert seen == [torch.float32] * 3
    assert (hidden.grad.dtype, head.grad.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(hidden.grad.double(), hidden_64.grad, rtol=0.05, atol=0.05)
    torch.testing.assert_close(head.grad.double(), head_64.grad, rtol=0.05, atol=0.05)


# --- memory -----------------------------------------------------------------------------------------------------------


class LargeArrays(TorchDispatchMode):
    """Keeps every piece of memory of `elements` float32 numbers or more that a tensor made inside has."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements = elements
        self.found: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, Tensor) and one.untyped_storage().nbytes() >= 4 * self.elements:
                self.found[one.untyped_storage().data_ptr()] = one.untyped_storage()
        return made


@pytest.mark.parametrize(
    ("name", "arrays"), [("score", 3), ("logprobs", 2), ("sampled", 3), ("full", 5), ("topk", 5)]
)
def test_a_pass_uses_the_same_few_arrays_of_one_chunk(
    name: str, arrays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, vocabulary, per_chunk = 300, 500, 20
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 4 * vocabulary * per_chunk)
    student, teacher, reference = (projection(seed, tokens, vocabulary) for seed in range(3))
    student.hidden_TD.requires_grad_()
    student.head_VD.requires_grad_()
    target, drawn = Target(teacher, reference, 1.25), ids(tokens, vocabulary)

    def chunk_loss(chunk: Chunk) -> tuple[Tensor, Tensor]:
        part = drawn[chunk.tokens]
        if name == "sampled":
            own_C = chunk.logprobs_CV[range(len(part)), part]
            return objective.policy_gradient(chunk.probs_CV, own_C, part, torch.ones(len(part)))
        target_CV, _ = target.chunk(part, chunk.tokens, 1.0, chunk.scratch)
        if name == "full":
            return objective.reverse_kl(chunk.logprobs_CV, chunk.probs_CV, target_CV)
        return objective.topk_reverse_kl(chunk.logprobs_CV, chunk.probs_CV, target_CV, 8)

    with LargeArrays(per_chunk * vocabulary) as large:
        if name == "score":
            target.score(drawn, 0.7)
        elif name == "logprobs":
            linear_logprobs(student, drawn, 0.7)
        else:
            linear_loss(student, chunk_loss, 1.0).backward()
    sizes = [storage.nbytes() for storage in large.found.values()]
    assert sizes == [4 * per_chunk * vocabulary] * arrays
