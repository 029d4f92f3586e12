"""Extreme numbers through the whole loss: huge logits, ties, underflow, λ up to 10, −inf, masked and empty rows.

The oracle is float64 brute force on the same float32 logits, its gradients autograd's. Float32 cannot do better than
its rounding of the largest log-probs that enter, so that is what errors are measured in.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import tiny_tokenizer
from gopd import logprobs, objective
from gopd.culprits import find_culprits
from gopd.errors import BadInput
from gopd.learner import Learner, NonFinite
from gopd.logprobs import Projection, Target, linear_loss
from gopd.loss import MicroBatchLoss
from gopd.methods import grpo, opd
from gopd.packing import pack
from gopd.recipe import GrpoRecipe
from gopd.recipe_file import parse_recipe
from gopd.rollouts import PromptSet, demonstrations
from gopd.sections import CorrectionSection, GrpoSection, ObjectiveSection
from gopd.types import Rollout, Scores, TokenReport, TokenTerms
from gopd.validate import Domain, Validation, kl_interval
from tiny import CPU, NO_CLIP, Bench, load, make_prompt, make_rollouts, opd_recipe

SCALES = (0.0, 1.0, 1.25, 10.0)
ESTIMATORS: dict[str, dict[str, Any]] = {
    "sampled": {"estimator": "sampled"},
    "control variate": {"estimator": "sampled", "control_variate": True},
    "topk": {"estimator": "topk", "top_k": 2},
    "full": {"estimator": "full"},
}
EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class Masked(Projection):
    """A model that rules out the same tokens everywhere: their logits are −inf."""

    masked: tuple[int, ...] = ()

    def logits(self, tokens: slice, temperature: float, out: Tensor | None = None) -> Tensor:
        logits_CV = Projection.logits(self, tokens, temperature, out)
        logits_CV[:, list(self.masked)] = -torch.inf
        return logits_CV


@dataclass
class Case:
    """Hidden states and heads of the three models, and the tokens drawn; one row of T tokens."""

    student: Projection
    teacher: Projection
    reference: Projection
    ids: list[int]

    def rollout(self) -> Rollout:
        return Rollout(make_prompt(0, "?", "math"), 0, [1], self.ids, None, True, "")

    def target(self, scale: float) -> Target:
        return Target(self.teacher, None if scale == 1 else self.reference, scale)


def plain(logits_TV: Tensor) -> Projection:
    """These very logits: the head is the identity."""
    return Projection(logits_TV, torch.eye(logits_TV.shape[-1], dtype=logits_TV.dtype))


def extreme_logits(vocabulary: int) -> list[Tensor]:
    """Student, teacher and reference [T, V]: every triple of shapes that are hard on a softmax."""
    alternate = torch.arange(vocabulary) % 2 * 2.0 - 1
    first = torch.where(torch.arange(vocabulary) == 0, 1e4, 0.0)
    shapes = [
        1e4 * alternate,  # half of the tokens underflow, the others tie
        -1e4 * alternate,
        torch.full((vocabulary,), 1e4),  # all tie
        first,  # one token has everything
        -first,  # one token underflows
        torch.linspace(-3, 2, vocabulary),
    ]
    return [torch.stack(column) for column in zip(*itertools.product(shapes, repeat=3), strict=True)]


def extreme_case(vocabulary: int) -> Case:
    student, teacher, reference = map(plain, extreme_logits(vocabulary))
    return Case(student, teacher, reference, [t % vocabulary for t in range(len(student.hidden_TD))])


def our_loss(
    case: Case, section: dict[str, Any], scale: float, sampler_logprobs_R: Tensor | None = None
) -> tuple[Tensor, Tensor, TokenReport]:
    """Loss, its gradient w.r.t. the student's hidden states, and the report; by the code that trains."""
    how, rollout, target = ObjectiveSection(**section), case.rollout(), case.target(scale)
    ids_T = torch.tensor(case.ids)
    if opd.needs_vocabulary(how):
        scores, of_loss = Scores("math", scale), target
    else:
        seen = target.score(ids_T, 1.0)
        numbers = (seen.teacher_logprobs_T, seen.reference_logprobs_T, seen.log_partition_T)
        scores, of_loss = Scores("math", scale, *numbers), None
    terms = opd.token_terms(rollout, scores, 0.0, corrected=False)
    terms = replace(terms, sampler_logprobs_R=sampler_logprobs_R)
    packed, weight_T = pack([rollout.prompt_ids], [case.ids], CPU), torch.ones(len(case.ids))
    correction = CorrectionSection(beyond="mask")
    loss = MicroBatchLoss(how, correction, packed, [terms], [scores], weight_T, of_loss, 1.0)
    hidden_TD = case.student.hidden_TD.clone().requires_grad_()
    total = linear_loss(Projection(hidden_TD, case.student.head_VD), loss, 1.0)
    total.backward()
    assert hidden_TD.grad is not None
    return total.detach(), hidden_TD.grad, loss.reports()[0]


def brute_force(case: Case, section: dict[str, Any], scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss [T], its gradient w.r.t. hidden states, KL(S ‖ q) [T] and the unit of rounding [T, 1]; float64."""
    hidden_TD = case.student.hidden_TD.double().requires_grad_()
    own, theirs, base = (
        (hidden @ p.head_VD.double().T).log_softmax(-1)
        for hidden, p in (
            (hidden_TD, case.student),
            (case.teacher.hidden_TD.double(), case.teacher),
            (case.reference.hidden_TD.double(), case.reference),
        )
    )
    mixed = theirs if scale == 1 else scale * theirs + (1 - scale) * base
    target = mixed.log_softmax(-1)
    kl_T = (own.exp() * (own - target)).sum(-1)
    pick = (torch.arange(len(case.ids)), torch.tensor(case.ids))
    if section["estimator"] == "full":
        loss_T = kl_T
    elif section["estimator"] == "topk":
        loss_T = brute_topk(own, target, section["top_k"])
    else:
        advantage_T = (mixed - own)[pick]
        if section.get("control_variate"):
            advantage_T = advantage_T - (own.exp() * (mixed - own)).sum(-1)
        loss_T = -advantage_T.detach() * own[pick]
    (gradient_TD,) = torch.autograd.grad(loss_T.sum(), hidden_TD)
    sizes = [own, scale * theirs] + [(1 - scale) * base] * (scale != 1)
    unit_T1 = EPS * sum(size.detach().abs().amax(-1, keepdim=True) for size in sizes).clamp_min(1)
    return loss_T.detach(), gradient_TD, kl_T.detach(), unit_T1


def brute_topk(own: Tensor, target: Tensor, top_k: int) -> Tensor:
    """The divergence over k tokens and one bucket; which of tied tokens are the k is the float32 code's choice."""
    if top_k >= own.shape[-1] - 1:
        return (own.exp() * (own - target)).sum(-1)
    chosen = own.detach().float().topk(top_k, dim=-1).indices
    inside = torch.zeros_like(own, dtype=torch.bool).scatter(-1, chosen, True)
    rest = [x.masked_fill(inside, -torch.inf).logsumexp(-1) for x in (own, target)]
    own_TK, target_TK = own.gather(-1, chosen), target.gather(-1, chosen)
    within = (own_TK.exp() * (own_TK - target_TK)).sum(-1)
    return within + rest[0].exp() * (rest[0] - rest[1])


def assert_right(case: Case, section: dict[str, Any], scale: float) -> None:
    loss, gradient_TD, report = our_loss(case, section, scale)
    expected_T, expected_TD, kl_T, unit_T1 = brute_force(case, section, scale)
    assert loss.isfinite() and gradient_TD.isfinite().all()
    assert expected_T.isfinite().all() and expected_TD.isfinite().all()
    exact = section["estimator"] != "sampled" or section.get("control_variate")
    # `sampled` multiplies the advantage by log-probs as large again.
    size = 1.0 if section["estimator"] != "sampled" else float(report.student_logprobs_R.abs().max())
    off = (loss.double() - expected_T.sum()).abs()
    assert off <= 8 * max(size, 1.0) * float(unit_T1.sum()), f"the loss is off by {off}"
    off_TD = (gradient_TD.double() - expected_TD).abs() / unit_T1
    assert float(off_TD.max()) <= 8, f"a gradient is off by {float(off_TD.max())} units"
    assert report.entropy_R.isfinite().all() and report.advantage_R.isfinite().all()
    if exact and section["estimator"] != "topk":
        assert report.kl_R is not None
        off_T = (report.kl_R.double() - kl_T).abs() / unit_T1[:, 0]
        assert float(off_T.max()) <= 8


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("section", ESTIMATORS.values(), ids=ESTIMATORS.keys())
@pytest.mark.parametrize("vocabulary", [2, 7])
def test_extreme_logits_give_the_loss_and_gradient_of_float64(
    vocabulary: int, section: dict[str, Any], scale: float
) -> None:
    assert_right(extreme_case(vocabulary), section, scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("section", ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_a_vocabulary_of_256_thousand(
    section: dict[str, Any], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several chunks, from logits of size 1 to logits of size 10^4."""
    vocabulary, tokens = 2**18, 3
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 4 * vocabulary * 2)
    draw = torch.Generator().manual_seed(0)
    sizes_T1 = torch.tensor([[1.0], [100.0], [1e4]])

    def model() -> Projection:
        head_VD = 2 * torch.randint(0, 2**10, (vocabulary, 2), generator=draw) / 2**10 - 1
        return Projection(sizes_T1 * torch.tensor([[1.0, 0.5]]), head_VD)

    case = Case(model(), model(), model(), [0, vocabulary - 1, 77])
    assert len(list(logprobs.token_chunks(tokens, vocabulary))) == 2
    assert_right(case, section, scale)


@pytest.mark.parametrize("section", ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_bfloat16_states_with_huge_logits_stay_near(section: dict[str, Any]) -> None:
    """±10^4 in bfloat16; the hidden states' gradient is rounded to 8 bits, and nothing before it."""
    narrow = [plain(logits.bfloat16()) for logits in extreme_logits(7)]
    case = Case(*narrow, [t % 7 for t in range(len(narrow[0].hidden_TD))])
    loss, gradient_TD, _ = our_loss(case, section, 1.25)
    expected_T, expected_TD, _, unit_T1 = brute_force(case, section, 1.25)
    assert loss.isfinite() and gradient_TD.isfinite().all()
    assert float(loss) == pytest.approx(float(expected_T.sum()), rel=1e-4)
    off_TD = (gradient_TD.double() - expected_TD).abs()
    assert bool((off_TD <= 2**-8 * expected_TD.abs() + 8 * unit_T1).all())


@pytest.mark.parametrize("section", ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_masked_rows_give_no_gradient_and_leave_the_others_alone(section: dict[str, Any]) -> None:
    """Rollout correction masks every token whose weight is above the cap, at the most extreme numbers."""
    case, scale = extreme_case(7), 10.0
    tokens = len(case.ids)
    own = case.student.hidden_TD.log_softmax(-1)[range(tokens), case.ids]
    masked = torch.arange(tokens) % 3 == 0
    sampler = torch.where(masked, own - 10, own)
    _, whole_TD, _ = our_loss(case, section, scale)
    loss, gradient_TD, report = our_loss(case, section, scale, sampler)
    assert report.correction_R is not None and torch.equal(report.correction_R == 0, masked)
    assert loss.isfinite() and not gradient_TD[masked].any()
    assert torch.equal(gradient_TD[~masked], whole_TD[~masked])
    loss, gradient_TD, _ = our_loss(case, section, scale, own - 10)
    assert float(loss) == 0 and not gradient_TD.any()


# --- −inf: a token that a model rules out ---------------------------------------------------------------------------


def masked_case(teacher: tuple[int, ...] = (), reference: tuple[int, ...] = (), drawn: int = 0) -> Case:
    """Moderate logits over 6 tokens, of which 5 is the student's least likely; some are ruled out by −inf."""
    draw = torch.Generator().manual_seed(2)
    own, theirs, base = (torch.randn(3, 6, generator=draw) for _ in range(3))
    own[:, 5] = -8.0
    models = (
        Masked(theirs, torch.eye(6), teacher),
        Masked(base, torch.eye(6), reference),
    )
    return Case(plain(own), *models, [drawn] * 3)


@pytest.mark.parametrize("scale", [1.0, 1.25, 10.0])
def test_what_a_teacher_rules_out_among_the_rest_topk_takes_as_probability_0(scale: float) -> None:
    case = masked_case(teacher=(5,))
    loss, gradient_TD, report = our_loss(case, ESTIMATORS["topk"], scale)
    hidden_TD = case.student.hidden_TD.double().requires_grad_()
    own = hidden_TD.log_softmax(-1)
    allowed = case.teacher.hidden_TD.double()[:, :5].softmax(-1) ** scale
    base = case.reference.hidden_TD.double().softmax(-1)[:, :5] ** (1 - scale)
    target = torch.cat([allowed * base, torch.zeros(3, 1)], -1)
    target = (target / target.sum(-1, keepdim=True)).log()
    expected_T = brute_topk(own, target, 2)
    (expected_TD,) = torch.autograd.grad(expected_T.sum(), hidden_TD)
    assert float(loss) == pytest.approx(float(expected_T.detach().sum()), rel=1e-5)
    torch.testing.assert_close(gradient_TD.double(), expected_TD, rtol=1e-4, atol=1e-5)
    assert find_culprits({0: (case.rollout(), report)}) == {}


@pytest.mark.parametrize("scale", [1.0, 1.25, 10.0])
def test_sampled_does_not_care_what_is_ruled_out_elsewhere(scale: float) -> None:
    case, free = masked_case(teacher=(5,)), masked_case()
    loss, gradient_TD, _ = our_loss(case, ESTIMATORS["sampled"], scale)
    own = case.student.hidden_TD.double().log_softmax(-1)
    theirs = case.teacher.hidden_TD.double()[:, :5].log_softmax(-1)[:, 0]
    base = case.reference.hidden_TD.double().log_softmax(-1)[:, 0]
    advantage_T = scale * theirs + (1 - scale) * base - own[:, 0]
    expected_TD = advantage_T[:, None] * (own.exp() - torch.eye(6)[0])
    assert float(loss) == pytest.approx(float(-(advantage_T * own[:, 0]).sum()), rel=1e-5)
    torch.testing.assert_close(gradient_TD.double(), expected_TD, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(gradient_TD, our_loss(free, ESTIMATORS["sampled"], scale)[1])


@pytest.mark.parametrize("section", ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_where_the_reward_scale_is_0_the_teacher_may_rule_out_anything(section: dict[str, Any]) -> None:
    loss, gradient_TD, _ = our_loss(masked_case(teacher=(0, 5)), section, 0.0)
    expected, expected_TD, _ = our_loss(masked_case(), section, 0.0)
    assert torch.equal(loss, expected) and torch.equal(gradient_TD, expected_TD)


IMPOSSIBLE = [
    ("sampled", 1.0, {"teacher": (0,)}, "teacher math gives it probability 0"),
    ("sampled", 1.25, {"teacher": (0,)}, "teacher math gives it probability 0"),
    ("sampled", 0.0, {"reference": (0,)}, "the reference of teacher math gives it probability 0"),
    ("sampled", 10.0, {"reference": (0,)}, "the reference of teacher math gives it probability 0"),
    ("control variate", 1.25, {"teacher": (5,)}, "the KL to the target of teacher math is not finite"),
    ("topk", 1.0, {"teacher": (0,)}, "teacher math gives it probability 0"),
    ("topk", 1.25, {"reference": (5,)}, "the KL to the target of teacher math is not finite"),
    ("topk", 1.0, {"teacher": (1, 2, 3, 4, 5)}, "the KL to the target of teacher math is not finite"),
    ("full", 1.0, {"teacher": (5,)}, "the KL to the target of teacher math is not finite"),
    (
        "full",
        1.25,
        {"teacher": (5,), "reference": (5,)},
        "the KL to the target of teacher math is not finite",
    ),
]


@pytest.mark.parametrize(("estimator", "scale", "masked", "said"), IMPOSSIBLE)
def test_an_infinite_loss_is_never_finite_and_has_a_name(
    estimator: str, scale: float, masked: dict[str, Any], said: str
) -> None:
    case = masked_case(**masked)
    loss, _, report = our_loss(case, ESTIMATORS[estimator], scale)
    assert not loss.isfinite()
    token, what, _ = find_culprits({0: (case.rollout(), report)})[0]
    assert token == 0 and what.startswith(said)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("value", "words"), [(-torch.inf, "probability 0"), (torch.nan, "log-prob nan")])
@pytest.mark.parametrize("role", ["teacher", "reference"])
def test_training_stops_at_the_row_and_token_and_touches_nothing(
    role: str, value: float, words: str, scale: float, student_folder: Path, teacher_folder: Path
) -> None:
    """As from a server, which says −9999 for −inf."""
    teachers = {"math": {"model": str(teacher_folder)}}
    recipe = opd_recipe(student_folder, teachers, objective={"reward_scale": scale})
    bench = Bench.of(recipe)
    rollouts = make_rollouts(recipe, bench.student, ["math"])
    scores = bench.score(rollouts)
    spoiled = scores[2]
    assert spoiled is not None
    values_R = getattr(spoiled, f"{role}_logprobs_R")
    if values_R is None:
        return  # no reference at λ = 1
    values_R[3] = value
    before = {n: p.detach().clone() for n, p in bench.learner.parameters.items()}
    if role == "teacher" and scale == 0:
        assert bench.learner.update(rollouts, scores, bench.terms(rollouts, scores, True)).refused is None
        return
    with pytest.raises(NonFinite) as stopped:
        bench.learner.update(rollouts, scores, bench.terms(rollouts, scores, True))
    said = str(stopped.value)
    name = "teacher math" if role == "teacher" else "the reference of teacher math"
    token = tiny_tokenizer().decode([rollouts[2].response_ids[3]])
    assert (
        f"rows.jsonl:3 (sample 0), response token 4 of 9, {token!r}: {name} gives it" in said
        and words in said
    )
    assert stopped.value.rows == [2]
    assert all(torch.equal(p, before[n]) for n, p in bench.learner.parameters.items())
    assert bench.learner.updates == 0 and not bench.learner.optimizer.state


# --- GRPO, rows without tokens, measurement ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grpo_learner(student_folder: Path) -> Learner:
    tree = {
        "method": "grpo",
        "student": {"model": str(student_folder)},
        "data": {"files": ["rows.jsonl"]},
        "train": {"steps": 4},
        "optim": {"lr": 1e-12, "grad_clip": NO_CLIP},
        "grpo": {"kl_weight": 0.5},
    }
    recipe = parse_recipe(tree)
    assert isinstance(recipe, GrpoRecipe)
    return Learner(recipe, load(student_folder), total_steps=4, aggregation="token-mean")


def with_reference(
    learner: Learner, value: float
) -> tuple[list[Rollout], list[Scores | None], list[TokenTerms | None]]:
    """Rows whose reference says `value` at the first token of row 1."""
    rollouts = make_rollouts(learner.recipe, learner.student, [None], (3, 2))  # type: ignore[arg-type]
    references = [torch.full((3,), -4.0), torch.tensor([value, -4.0])]
    scores: list[Scores | None] = [Scores(None, 0.0, reference_logprobs_R=r) for r in references]
    section = GrpoSection(kl_weight=0.5)
    terms: list[TokenTerms | None] = [
        grpo.token_terms(section, r, 0.0, s, old_logprobs_R=None, corrected=False)
        for r, s in zip(rollouts, scores, strict=True)
    ]
    return rollouts, scores, terms


def test_grpos_penalty_counts_a_ruled_out_token_as_20_nats(grpo_learner: Learner) -> None:
    rollouts, scores, terms = with_reference(grpo_learner, -torch.inf)
    report = grpo_learner.update(rollouts, scores, terms).reports[1]
    assert report is not None and report.reference_kl_R is not None
    assert float(report.reference_kl_R[0]) == pytest.approx(19, abs=1e-6)  # e^−20 + 20 − 1


def test_grpos_reference_that_is_not_a_number_is_no_penalty_of_0(grpo_learner: Learner) -> None:
    with pytest.raises(
        NonFinite, match=r"rows.jsonl:2 .*token 1 of 2.*the reference gives it the log-prob nan"
    ):
        grpo_learner.update(*with_reference(grpo_learner, torch.nan))


@pytest.mark.parametrize(("value", "clipped"), [(1e4, True), (-1e4, False)])
def test_a_ratio_far_off_stays_finite(value: float, clipped: bool) -> None:
    """ρ is clamped at e^±20: a positive advantage's gain is clipped, a loss is not."""
    student, old = torch.tensor([0.0]), torch.tensor([-value])
    bound = torch.tensor([0.2])
    loss, slope, ratio = objective.clipped_surrogate(student, old, torch.tensor([1.0]), bound, bound)
    assert loss.isfinite() and slope.isfinite() and ratio.isfinite()
    assert (float(slope) == 0) == clipped


def test_a_demonstration_without_tokens_is_refused_by_its_place() -> None:
    prompts = [replace(make_prompt(i, "x", None), response="é" * i, response_ended=False) for i in (1, 0)]
    with pytest.raises(BadInput, match=r"rows\.jsonl:1: the response has no token"):
        demonstrations(PromptSet(prompts[1:], [[5]]), tiny_tokenizer(), "student", 9)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_kl_that_is_not_finite_is_the_worst_and_has_no_interval(value: float) -> None:
    rows = [Rollout(make_prompt(i, "x", None), 0, [1], [5, 6], None, True, "") for i in range(3)]
    kl, low, high = kl_interval(rows, [1.0, value, 2.0])
    assert not torch.tensor(kl).isfinite() and (low, high) == (None, None)
    domain = Domain(3, 3, None, None, None, 2.0, 0.0, kl)
    assert Validation(1, "student", {"a": domain}).score() == -torch.inf
