from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from gopd import objective

SCALES = [0.0, 0.5, 1.0, 1.25, 2.0]
DOUBLE = torch.float64


def logits(seed: int, *shape: int, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def student_teacher_reference(
    seed: int = 0, tokens: int = 5, vocabulary: int = 11
) -> tuple[Tensor, Tensor, Tensor]:
    """Three independent sets of logits [T, V], float64."""
    z_S, z_T, z_R = logits(seed, 3, tokens, vocabulary)
    return z_S, z_T, z_R


def brute_target(z_T: Tensor, z_R: Tensor, scale: float) -> Tensor:
    """log q_λ from its definition, T^λ R^(1−λ) normalised; nothing shared with the code under test."""
    powers = torch.exp(z_T) / torch.exp(z_T).sum(-1, keepdim=True)
    reference = torch.exp(z_R) / torch.exp(z_R).sum(-1, keepdim=True)
    product = powers**scale * reference ** (1 - scale)
    return (product / product.sum(-1, keepdim=True)).log()


def brute_kl(z_S: Tensor, log_q: Tensor) -> Tensor:
    probs = torch.exp(z_S) / torch.exp(z_S).sum(-1, keepdim=True)
    return (probs * (probs.log() - log_q)).sum(-1)


def gradient_of(value: Tensor, at: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(value, at)
    return gradient


# --- advantage and target ---------------------------------------------------------------------------------------


def test_advantage_by_hand() -> None:
    student, teacher, reference = (torch.tensor([v], dtype=DOUBLE) for v in (-2.0, -1.0, -4.0))
    # λ(ℓ_T − ℓ_R) − (ℓ_S − ℓ_R) with ℓ_T − ℓ_R = 3 and ℓ_S − ℓ_R = 2
    for scale, expected in [(0.0, -2.0), (0.5, -0.5), (1.0, 1.0), (1.25, 1.75), (2.0, 4.0)]:
        assert objective.advantages(student, teacher, reference, scale).item() == pytest.approx(expected)


def test_advantage_raises_what_the_teacher_prefers() -> None:
    student, good, bad = torch.tensor([-1.0]), torch.tensor([-0.5]), torch.tensor([-3.0])
    assert objective.advantages(student, good, None, 1.0) > 0
    assert objective.advantages(student, bad, None, 1.0) < 0


def test_advantage_carries_no_gradient() -> None:
    student, teacher, reference = (torch.randn(3, requires_grad=True) for _ in range(3))
    for scale in SCALES:
        assert not objective.advantages(student, teacher, reference, scale).requires_grad


def test_unit_scale_needs_no_reference_and_ignores_one() -> None:
    student, teacher = torch.tensor([-1.0, -2.0]), torch.tensor([-0.5, -7.0])
    broken = torch.full((2,), torch.nan)
    assert objective.advantages(student, teacher, None, 1.0).tolist() == [0.5, -5.0]
    assert objective.advantages(student, teacher, broken, 1.0).tolist() == [0.5, -5.0]
    z_T = logits(1, 2, 7)
    expected = brute_target(z_T, torch.zeros_like(z_T), 1.0)
    torch.testing.assert_close(objective.target_logprobs(z_T, None, 1.0), expected)
    torch.testing.assert_close(objective.target_logprobs(z_T, torch.full_like(z_T, torch.nan), 1.0), expected)


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.25])
def test_other_scales_need_a_reference(scale: float) -> None:
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="reference"):
        objective.advantages(one, one, None, scale)
    with pytest.raises(ValueError, match="reference"):
        objective.target_logprobs(one, None, scale)


def test_negative_scale_is_refused() -> None:
    one = torch.zeros(1)
    with pytest.raises(ValueError, match="reward_scale"):
        objective.advantages(one, one, one, -0.5)


@pytest.mark.parametrize("scale", SCALES)
def test_target_is_the_normalised_product_of_powers(scale: float) -> None:
    _, z_T, z_R = student_teacher_reference()
    expected = brute_target(z_T, z_R, scale)
    torch.testing.assert_close(objective.target_logprobs(z_T, z_R, scale), expected)
    single = objective.target_logprobs(z_T.float(), z_R.float(), scale)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, expected.float(), rtol=1e-5, atol=1e-5)


def test_target_of_scale_zero_is_the_reference_and_of_one_the_teacher() -> None:
    _, z_T, z_R = student_teacher_reference()
    torch.testing.assert_close(objective.target_logprobs(z_T, z_R, 0.0), z_R.log_softmax(-1))
    torch.testing.assert_close(objective.target_logprobs(z_T, z_R, 1.0), z_T.log_softmax(-1))


def test_half_precision_is_reduced_in_float32() -> None:
    z_T = logits(3, 4, 33).bfloat16()
    target = objective.target_logprobs(z_T, z_T, 1.25)
    assert target.dtype == torch.float32
    torch.testing.assert_close(target.exp().sum(-1), torch.ones(4), rtol=1e-6, atol=1e-6)


def parts(z_TV: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs and probabilities, as the estimators take (and use up) them."""
    return z_TV.log_softmax(-1), z_TV.softmax(-1)


# --- the three estimators: loss and gradient against autograd ----------------------------------------------------


def test_policy_gradient_is_the_gradient_of_its_loss() -> None:
    z_S = logits(0, 5, 11).requires_grad_()
    ids, advantage = torch.tensor([0, 10, 3, 3, 7]), logits(1, 5)
    expected = -advantage * z_S.log_softmax(-1)[range(5), ids]
    own = z_S.detach().log_softmax(-1)
    loss, gradient = objective.policy_gradient(own.exp(), own[range(5), ids], ids, advantage)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, gradient_of(expected.sum(), z_S))


@pytest.mark.parametrize("scale", SCALES)
def test_reverse_kl_and_its_gradient(scale: float) -> None:
    z_S, z_T, z_R = student_teacher_reference()
    target = brute_target(z_T, z_R, scale)
    leaf = z_S.clone().requires_grad_()
    expected = brute_kl(leaf, target)
    loss, gradient = objective.reverse_kl(*parts(z_S), target.clone())
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, gradient_of(expected.sum(), leaf))


def brute_topk(z_S: Tensor, log_q: Tensor, top_k: int) -> Tensor:
    """KL between student and target after every token outside the student's top-k fell into one bucket."""
    probs, target = z_S.softmax(-1), log_q.exp()
    total = []
    for p, q in zip(probs, target, strict=True):
        order = sorted(range(len(p)), key=lambda v: -float(p[v].detach()))
        inside, outside = order[:top_k], order[top_k:]
        p_rest, q_rest = sum(p[v] for v in outside), sum(q[v] for v in outside)
        total.append(sum(p[v] * (p[v] / q[v]).log() for v in inside) + p_rest * (p_rest / q_rest).log())
    return torch.stack(total)


@pytest.mark.parametrize("top_k", [1, 3, 9])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1.25])
def test_topk_reverse_kl_and_its_gradient(top_k: int, scale: float) -> None:
    z_S, z_T, z_R = student_teacher_reference()
    target = brute_target(z_T, z_R, scale)
    leaf = z_S.clone().requires_grad_()
    expected = brute_topk(leaf, target, top_k)
    loss, gradient = objective.topk_reverse_kl(*parts(z_S), target.clone(), top_k)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, gradient_of(expected.sum(), leaf))


def test_topk_is_a_divergence_below_the_full_one() -> None:
    z_S, z_T, _ = student_teacher_reference(4, tokens=200, vocabulary=17)
    own, target = z_S.log_softmax(-1), z_T.log_softmax(-1)
    full, full_gradient = objective.reverse_kl(*parts(own), target.clone())
    last = torch.zeros_like(full)
    for top_k in (1, 2, 5, 15):
        loss, _ = objective.topk_reverse_kl(*parts(own), target.clone(), top_k)
        assert bool((loss > 0).all())
        assert bool((loss <= full + 1e-12).all())
        assert bool((loss >= last - 1e-12).all()), "a finer partition can only show more divergence"
        last = loss
    for top_k in (16, 17, 1000):
        loss, gradient = objective.topk_reverse_kl(*parts(own), target.clone(), top_k)
        torch.testing.assert_close(loss, full)
        torch.testing.assert_close(gradient, full_gradient)


def test_topk_is_zero_where_student_meets_target() -> None:
    own = logits(6, 3, 12).log_softmax(-1)
    loss, gradient = objective.topk_reverse_kl(*parts(own), own.clone(), 4)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-14)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


def test_topk_sees_a_tail_that_is_tiny_in_float32() -> None:
    """A target that leaves the tail 1e-12, and a student that leaves it 1e-9: both vanish in 1 − Σ_k of float32."""
    vocabulary, top_k = 40, 2

    def two_and_a_tail(first: float, second: float, tail: float) -> Tensor:
        return torch.tensor(
            [first, second, *[tail / (vocabulary - 2)] * (vocabulary - 2)], dtype=DOUBLE
        ).log()[None]

    target = two_and_a_tail(0.4, 0.6, 1e-12)
    for tail in (1e-2, 1e-9):
        z_S = two_and_a_tail(0.7, 0.3, tail)
        leaf = z_S.clone().requires_grad_()
        expected = brute_topk(leaf, target.log_softmax(-1), top_k)
        loss, gradient = objective.topk_reverse_kl(*parts(z_S.float()), target.float().log_softmax(-1), top_k)
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            gradient.double(), gradient_of(expected.sum(), leaf), rtol=1e-4, atol=1e-12
        )


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.25])
def test_extreme_logits_stay_finite(scale: float) -> None:
    signs = torch.tensor([[1.0, -1.0, 0.0, -1.0, 1.0, -1.0], [-1.0, 1.0, 1.0, 1.0, -1.0, 0.0]])
    z_S, z_T, z_R = 1e4 * signs, -1e4 * signs, 1e4 * signs.roll(1, -1)
    own, target = z_S.log_softmax(-1), objective.target_logprobs(z_T, z_R, scale)
    for loss, gradient in (
        objective.reverse_kl(*parts(own), target.clone()),
        objective.topk_reverse_kl(*parts(own), target.clone(), 2),
        objective.policy_gradient(
            own.exp(), own[range(2), [1, 0]], torch.tensor([1, 0]), torch.tensor([-3e4, 3e4])
        ),
    ):
        assert bool(torch.isfinite(loss).all())
        assert bool(torch.isfinite(gradient).all())
        torch.testing.assert_close(gradient.sum(-1), torch.zeros(2), rtol=0, atol=1e-2)
    assert bool(torch.isfinite(objective.entropy(*parts(own))).all())
    assert bool(torch.isfinite(objective.mean_advantage(*parts(own), target.clone(), torch.zeros(2))).all())


# --- expectations by exact enumeration ----------------------------------------------------------------------------


def every_sampled_gradient(
    z_S: Tensor, z_T: Tensor, z_R: Tensor, scale: float, mean_T: Tensor | None
) -> Tensor:
    """Gradient of the `sampled` loss for each id that could have been drawn, [V drawn, T, V]."""
    own, teacher, reference = (z.log_softmax(-1) for z in (z_S, z_T, z_R))
    gradients = []
    for v in range(z_S.shape[-1]):
        ids = torch.full((len(z_S),), v)
        advantage = objective.advantages(own[:, v], teacher[:, v], reference[:, v], scale)
        if mean_T is not None:
            advantage = advantage - mean_T
        gradients.append(objective.policy_gradient(own.exp(), own[:, v], ids, advantage)[1])
    return torch.stack(gradients)


@pytest.mark.parametrize("scale", SCALES)
def test_mean_of_the_sampled_gradient_is_the_full_gradient(scale: float) -> None:
    z_S, z_T, z_R = student_teacher_reference()
    leaf = z_S.clone().requires_grad_()
    expected = gradient_of(brute_kl(leaf, brute_target(z_T, z_R, scale)).sum(), leaf)
    probs = z_S.softmax(-1)
    mean = torch.einsum("tv,vtw->tw", probs, every_sampled_gradient(z_S, z_T, z_R, scale, None))
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("scale", SCALES)
def test_control_variate_keeps_the_mean_and_cuts_the_variance(scale: float) -> None:
    # A student far from its target, where the mean advantage is large; close to it there is little to cut.
    z_S, z_T, z_R = student_teacher_reference(7, tokens=50)
    own, target = z_S.log_softmax(-1), brute_target(z_T, z_R, scale)
    powers = scale * z_T.log_softmax(-1) + (1 - scale) * z_R.log_softmax(-1)
    mean_advantage = objective.mean_advantage(*parts(own), target.clone(), powers.exp().sum(-1).log())
    probs = own.exp()
    advantage = objective.advantages(own, z_T.log_softmax(-1), z_R.log_softmax(-1), scale)
    torch.testing.assert_close(mean_advantage, (probs * advantage).sum(-1))

    plain = every_sampled_gradient(z_S, z_T, z_R, scale, None)
    centred = every_sampled_gradient(z_S, z_T, z_R, scale, mean_advantage)
    mean = torch.einsum("tv,vtw->tw", probs, plain)
    torch.testing.assert_close(torch.einsum("tv,vtw->tw", probs, centred), mean)
    before, after = (torch.einsum("tv,vtw->", probs, (g - mean) ** 2) for g in (plain, centred))
    assert float(after) < 0.8 * float(before)


@pytest.mark.parametrize("scale", SCALES)
def test_one_sample_kl_is_unbiased(scale: float) -> None:
    z_S, z_T, z_R = student_teacher_reference(8)
    own, teacher, reference = (z.log_softmax(-1) for z in (z_S, z_T, z_R))
    log_partition = (teacher.exp() ** scale * reference.exp() ** (1 - scale)).sum(-1, keepdim=True).log()
    one_sample = own - scale * teacher - (1 - scale) * reference + log_partition
    expected = brute_kl(z_S, brute_target(z_T, z_R, scale))
    torch.testing.assert_close((own.exp() * one_sample).sum(-1), expected)
    mean_advantage = objective.mean_advantage(*parts(own), brute_target(z_T, z_R, scale), log_partition[:, 0])
    torch.testing.assert_close(mean_advantage, log_partition[:, 0] - expected)


def test_entropy_by_hand() -> None:
    probs = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3]], dtype=DOUBLE)
    expected = torch.tensor([1.5 * math.log(2), math.log(3)], dtype=DOUBLE)
    torch.testing.assert_close(objective.entropy(probs.log(), probs), expected)


# --- rollout correction ---------------------------------------------------------------------------------------------

TRAIN = torch.tensor([0.0, math.log(2), math.log(10), -50.0, -3.0])
ENGINE = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0])
ROWS = torch.tensor([0, 0, 1, 2, 2])


def test_correction_is_the_probability_ratio_cut_at_the_cap() -> None:
    weights = objective.correction_weights(TRAIN, ENGINE, ROWS)
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, 5.0, math.exp(-20), math.exp(-2)]))
    weights = objective.correction_weights(TRAIN, ENGINE, ROWS, cap=1.5)
    torch.testing.assert_close(weights, torch.tensor([1.0, 1.5, 1.5, math.exp(-20), math.exp(-2)]))


def test_correction_clamps_the_log_ratio_on_both_sides() -> None:
    weights = objective.correction_weights(
        torch.tensor([0.0, -90.0]), torch.tensor([-90.0, 0.0]), torch.tensor([0, 1]), cap=math.inf
    )
    torch.testing.assert_close(weights, torch.tensor([math.exp(20), math.exp(-20)]))


def test_correction_can_drop_what_is_beyond_the_cap() -> None:
    weights = objective.correction_weights(TRAIN, ENGINE, ROWS, beyond="mask")
    torch.testing.assert_close(weights, torch.tensor([1.0, 2.0, 0.0, math.exp(-20), math.exp(-2)]))
    at_the_cap = objective.correction_weights(
        torch.tensor([0.0]), torch.tensor([0.0]), torch.tensor([0]), cap=1.0, beyond="mask"
    )
    assert at_the_cap.tolist() == [1.0]


def test_sequence_correction_gives_every_token_its_rows_ratio() -> None:
    train, engine = torch.tensor([-1.0, -2.0, -1.0, -15.0, -15.0]), torch.tensor([-1.5, -1.0, -1.5, 0.0, 0.0])
    weights = objective.correction_weights(train, engine, torch.tensor([0, 0, 1, 2, 2]), level="sequence")
    expected = [math.exp(-0.5), math.exp(-0.5), math.exp(0.5), math.exp(-20), math.exp(-20)]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_correction_is_exactly_one_where_the_engines_agree_and_carries_no_gradient() -> None:
    train = logits(9, 6).float().requires_grad_()
    rows = torch.tensor([0, 0, 1, 1, 1, 2])
    for level in ("token", "sequence"):
        weights = objective.correction_weights(train, train.detach(), rows, level=level)
        assert weights.tolist() == [1.0] * 6
        assert not weights.requires_grad


# --- aggregation ----------------------------------------------------------------------------------------------------


def test_aggregation_by_hand() -> None:
    lengths = torch.tensor([1, 2, 5])
    losses = [torch.tensor([8.0]), torch.tensor([1.0, 3.0]), torch.tensor([0.0, 1.0, 0.0, 1.0, 3.0])]
    by_hand = {
        "token-mean": (8 + 4 + 5) / 8,
        "seq-mean-token-mean": (8 + 2 + 1) / 3,
        "seq-mean-token-sum": (8 + 4 + 5) / 3,
    }
    for mode, expected in by_hand.items():
        weights = objective.aggregation_weights(lengths, mode)  # type: ignore[arg-type]
        assert weights.dtype == torch.float64
        total = sum(w * loss.sum() for w, loss in zip(weights, losses, strict=True))
        assert float(total) == pytest.approx(expected), mode
