"""Do teachers say the same twice, how far are they from their references, and does the student think like them?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
import yaml
from torch import Tensor

from gopd.doctor.evidence import Evidence
from gopd.doctor.finding import Finding, Verdict, of_teachers, unmeasured
from gopd.recipe import OpdRecipe, SampledRecipe
from gopd.types import Scores

STEADY = {torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Nats by which one token's log-prob may move between passes, by the dtype of frozen models. Choices: passes over the
tiny family on a CPU moved nothing, and other shapes (decoding) moved one token by 1e-5 and by 0.1; servers have a
tolerance of their own."""
UNSTEADY_STOP = 10
"""Times the tolerance beyond which it is not rounding. A choice."""

NOTHING = 1e-3
"""Mean |ℓ_T − ℓ_R| below which there is nothing to learn. Measured: 0 for a model against itself, 0.05 to 0.2 for tiny
teachers against their base."""
HUGE = 1.0
"""Above it the average sampled token is e times likelier for one of the two. A choice; measured: 4 to 5 on a random
student's tokens."""
LITTLE_MASS = 0.9
"""Least probability that the student should have on the teacher's top-k. Measured: 0.996 and more within the tiny
family, also for a student of another size, and 0.03 for a random one. Li et al. 2026 (arXiv 2604.13016) find 0.97 to
0.99 of the probability on tokens that student and teacher both rank high, where distillation succeeds."""


def scores_are_steady(evidence: Evidence) -> Finding:
    """The same rows scored again, and in another order and packing: the largest change of one token's log-prob."""
    if not evidence.again:
        return unmeasured("steadiness", "no frozen model scores anything in this recipe")
    moved = {name: _moved(evidence.scores, other) for name, other in evidence.again.items()}
    recipe = evidence.recipe
    assert isinstance(recipe, SampledRecipe)
    tolerance = STEADY[evidence.dtype]
    named = str(evidence.dtype).removeprefix("torch.")
    if servers := recipe.servers():
        tolerance = max(tolerance, *(server.tolerance for server in servers.values()))
        named += ", servers"
    said = ", ".join(f"{value:.2g} {name}" for name, value in moved.items())
    measured = f"a token's log-prob moves by at most {said}; allowed {tolerance:g} nats ({named})"
    figures = {"moved": moved, "tolerance": tolerance}
    largest = max(moved.values())
    if largest <= tolerance:
        return Finding("steadiness", "fine", measured, figures=figures)
    mend = "look for dropout or noise in the teacher; score in float32, or serve in a batch-invariant mode"
    verdict: Verdict = "warning" if largest <= UNSTEADY_STOP * tolerance else "stop"
    return Finding("steadiness", verdict, measured, mend, figures=figures)


def _moved(scores: Sequence[Scores | None], others: Sequence[Scores | None]) -> float:
    changes = [0.0]
    for one, other in zip(scores, others, strict=True):
        if one is None or other is None:
            continue
        pairs = (
            (one.teacher_logprobs_R, other.teacher_logprobs_R),
            (one.reference_logprobs_R, other.reference_logprobs_R),
        )
        for a_R, b_R in pairs:
            if a_R is not None and b_R is not None:
                changes.append(float(torch.where(a_R == b_R, 0.0, (a_R - b_R).abs()).max()))
    return max(changes)


def teachers_differ(evidence: Evidence) -> Finding:
    """ℓ_T − ℓ_R on the student's own tokens, for every teacher; against the student where λ = 1 needs no reference."""
    return of_teachers("gap", evidence.recipe, partial(_gap, evidence))


def _gap(evidence: Evidence, recipe: OpdRecipe, teacher: str) -> Finding:
    check = "gap"
    rows = [i for i in evidence.rows_of(teacher) if evidence.scores[i] is not None]
    if not rows:
        return unmeasured(check, "no row of the data goes to this teacher")
    scores = [evidence.scores[i] for i in rows]
    teacher_T = _joined(s.teacher_logprobs_R for s in scores if s is not None)
    own_T = torch.cat([evidence.own_logprobs[i] for i in rows])
    extrapolates = recipe.reward_scale(teacher) != 1
    reference_T = _joined(s.reference_logprobs_R for s in scores if s is not None) if extrapolates else own_T
    gap_T = teacher_T - reference_T
    lost = int((~torch.isfinite(gap_T)).sum())
    mean, size = float(gap_T.mean()), float(gap_T.abs().mean())
    names = "ℓ_T − ℓ_R" if extrapolates else "ℓ_T − ℓ_S (λ = 1)"
    measured = f"{names} is {mean:+.3g} nats a token, {size:.2g} in size, over {len(gap_T):,} tokens"
    figures = {"mean": mean, "mean_size": size, "tokens": len(gap_T), "not_finite": lost}
    if lost:
        mend = "the loss would not be finite: look for damaged weights, or tokens that the teacher excludes"
        return Finding(check, "stop", f"{lost} tokens have no finite gap", mend, figures=figures)
    if size < NOTHING and extrapolates and recipe.reference_of(teacher) is not None:
        mend = (
            "the reward scale changes nothing: set it to 1, or name the model that the teacher was made from"
        )
        return Finding(check, "warning", measured, mend, figures=figures)
    if size < NOTHING:
        mend = "there is nothing to learn: teacher and student are the same model in the same view"
        return Finding(check, "stop", measured, mend, figures=figures)
    if size > HUGE:
        mend = "take the reference (or student) that the teacher was made from, and the view it knows; a reward scale "
        mend += "above 1 extrapolates along this gap"
        return Finding(check, "warning", measured, mend, figures=figures)
    return Finding(check, "fine", measured, figures=figures)


def _joined(rows: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([row for row in rows if row is not None])


def student_is_near(evidence: Evidence) -> Finding:
    """Whether student and teacher agree about the likely next tokens, for every teacher."""
    return of_teachers("overlap", evidence.recipe, partial(_near, evidence))


def _near(evidence: Evidence, recipe: OpdRecipe, teacher: str) -> Finding:
    if recipe.teachers[teacher].server is not None:
        return unmeasured("overlap", "behind a server, which gives no distributions")
    found = (evidence.overlaps or {}).get(teacher)
    if found is None:
        return unmeasured("overlap", "no row of the data goes to this teacher")
    measured = (
        f"in the teacher's top {found.top_k} are {found.mass:.1%} of the student's probability, {found.sampled:.1%} of "
        f"the sampled tokens, {found.shared:.0%} of the student's top {found.top_k}"
    )
    figures = {
        "top_k": found.top_k,
        "tokens": found.tokens,
        "mass": found.mass,
        "sampled": found.sampled,
        "shared": found.shared,
    }
    if found.mass >= LITTLE_MASS:
        return Finding("overlap", "fine", measured, figures=figures)
    mend = "the teacher would hardly consider the student's tokens: cold-start the student by SFT on the teachers' "
    mend += "responses (commands below), and distil from there"
    return Finding("overlap", "warning", measured, mend, cold_start(evidence, recipe), figures)


def cold_start(evidence: Evidence, recipe: OpdRecipe) -> str:
    """Commands that teach the student the teachers' responses first, and then look again."""
    folder = f"{recipe.tracking.folder}/cold-start"
    rows = len(evidence.task.data)
    tree = {
        "method": "sft",
        "student": recipe.student.model_dump(mode="json", exclude_defaults=True, exclude={"lora"}),
        "data": {
            "files": [f"{folder}-data/responses.parquet"],
            "max_prompt_tokens": recipe.data.max_prompt_tokens,
            "max_response_tokens": recipe.data.max_response_tokens,
        },
        "optim": recipe.optim.model_dump(mode="json", exclude_defaults=True),
        "train": {"epochs": 1, "prompts_per_step": min(rows, recipe.train.prompts_per_step)},
        "tracking": {"folder": recipe.tracking.folder, "name": "cold-start"},
    }
    return "\n".join(
        [
            evidence.request.command("generate", "--to", f"{folder}-data"),
            "cat > cold-start.yaml <<'END'",
            yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=1000).rstrip("\n"),
            "END",
            "gopd train cold-start.yaml",
            evidence.request.command("doctor", f"student.model={folder}/student"),
        ]
    )
