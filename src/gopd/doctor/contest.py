"""Teachers against their references and the student, on the same validation problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from gopd import views
from gopd.collect import VALIDATION
from gopd.console import Display
from gopd.doctor.evidence import Contest
from gopd.estimates import estimate
from gopd.recipe import OpdRecipe
from gopd.rollouts import PromptSet, grade, sample_rollouts
from gopd.sampler import Sampler
from gopd.scorer import TEACHER_SLOTS
from gopd.seats import FrozenSampler, Seat
from gopd.setup import LocalRoles, Task
from gopd.types import Prompt


def contests(recipe: OpdRecipe, task: Task, roles: LocalRoles, limit: int, display: Display) -> list[Contest]:
    """Of every teacher that can answer, on the first `limit` problems with a verifier of each of its domains."""
    found: list[Contest] = []
    for teacher in recipe.teachers:
        problems = problems_of(task, teacher, limit)
        if not len(problems) or recipe.teachers[teacher].server is not None:
            continue
        means = {
            name: _answered(recipe, task, player, problems, f"{name}, {teacher}", display)
            for name, player in _players(recipe, roles, teacher).items()
        }
        own = means.pop("teacher")
        for against, other in means.items():
            found += _paired(teacher, against, problems.prompts, own, other)
    return found


def problems_of(task: Task, teacher: str, limit: int) -> PromptSet:
    """The first problems with a verifier that go to a teacher, so many of each data source."""
    taken: dict[str, int] = {}
    rows = []
    for i, prompt in enumerate(task.validation.prompts if task.validation is not None else []):
        if prompt.route == teacher and prompt.verifier != "none" and taken.get(prompt.data_source, 0) < limit:
            taken[prompt.data_source] = taken.get(prompt.data_source, 0) + 1
            rows.append(i)
    return PromptSet([], []) if task.validation is None else task.validation.part(rows)


Player = tuple[Sampler, Seat | None]
"""Who answers, and in which seat; None: the student."""


def _players(recipe: OpdRecipe, roles: LocalRoles, teacher: str) -> Mapping[str, Player]:
    """Teacher and student, and the reference where it is another model than the student and is here."""
    assert roles.scorer is not None
    route = roles.scorer.routes[teacher]
    assert isinstance(route.teacher, Seat)
    own = recipe.reference_of(teacher)
    student = "student (its reference)" if own is None and route.reference is not None else "student"
    players: dict[str, Player] = {
        "teacher": (roles.scorer.sampler(teacher), route.teacher),
        student: (roles.sampler, None),
    }
    if own is not None and isinstance(route.reference, Seat):
        sampler = FrozenSampler(route.reference.model, roles.scorer.frozen, TEACHER_SLOTS)
        players["reference"] = (sampler, route.reference)
    return players


def _answered(
    recipe: OpdRecipe, task: Task, player: Player, problems: PromptSet, name: str, display: Display
) -> list[float]:
    """Mean reward of each problem, answered as validation does."""
    section = recipe.validation
    assert section is not None
    (sampler, seat), ids = player, problems.ids
    if seat is not None and seat.view != recipe.student.view:
        ids = views.render(seat.view, problems.prompts, seat.tokenizer)
    with display.phase(f"problems: {name}", len(problems) * section.samples_per_prompt) as bar:
        rollouts = sample_rollouts(
            sampler,
            task.tokenizer,
            PromptSet(problems.prompts, ids),
            section.sampling,
            samples=section.samples_per_prompt,
            max_response_tokens=recipe.validation_response_tokens,
            stream=(recipe.train.seed, VALIDATION),
            progress=bar.sampled,
        )
    grade(rollouts)
    rewards = [[r.reward or 0.0 for r in group] for _, group in groupby(rollouts, lambda r: r.prompt.index)]
    return [sum(group) / len(group) for group in rewards]


def _paired(
    teacher: str, against: str, prompts: Sequence[Prompt], own: Sequence[float], other: Sequence[float]
) -> Iterator[Contest]:
    for domain in sorted({prompt.data_source for prompt in prompts}):
        places = [i for i, prompt in enumerate(prompts) if prompt.data_source == domain]
        count = len(places)
        yield Contest(
            teacher,
            domain,
            against,
            count,
            sum(own[i] for i in places) / count,
            sum(other[i] for i in places) / count,
            estimate([own[i] - other[i] for i in places]),
        )
