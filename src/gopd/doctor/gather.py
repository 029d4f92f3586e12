"""One pass over a few rows: sampled once, scored, and asked of every model what checks want to know."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial

from gopd.collect import TRAINING
from gopd.console import Display
from gopd.doctor.contest import contests
from gopd.doctor.evidence import Evidence, Request, SeenRow
from gopd.doctor.overlap import overlaps
from gopd.model import Description, describe
from gopd.plan.devices import Device
from gopd.recipe import AnyRecipe, OpdRecipe, SampledRecipe
from gopd.rollouts import grade, sample_rollouts
from gopd.scorer import Scorer
from gopd.setup import LocalRoles, Task, device_of, prepare
from gopd.types import Rollout, Scores

LEAST = 4
"""Rows of each route, where it has so many: no teacher goes unseen."""
SHOWN_ROWS = 3
"""Rows whose prompts are shown."""
STAGES = 4
"""Sampling, scoring, overlap, problems: what the bar of the whole counts."""


def prepared(recipe: AnyRecipe) -> tuple[Task, list[str]]:
    """What `prepare` makes of a recipe, and what it warned of. Raises BadInput."""
    with _heard() as said:
        return prepare(recipe), said


def gather(
    request: Request,
    task: Task,
    said: Sequence[str],
    devices: tuple[Device | None, int],
    display: Display,
) -> Evidence:
    """All evidence. Raises BadInput when models cannot be loaded, RunFailed when a server does not answer."""
    recipe = request.recipe
    rows = chosen_rows(recipe, task, request.rows)
    prompts = task.data.part(rows)
    evidence = Evidence(request, task, _models(recipe), said, *devices, prompts, device_of(recipe)[1])
    if task.demonstrations is not None:
        rollouts = [task.demonstrations[i] for i in rows]
        return replace(evidence, rollouts=rollouts, seen=_seen(rollouts, None))
    with closing(LocalRoles(_for_one_process(recipe), task)) as roles:
        return look(evidence, roles, display)


def look(evidence: Evidence, roles: LocalRoles, display: Display) -> Evidence:
    """What the roles of a recipe show on the chosen rows."""
    recipe = evidence.recipe
    assert isinstance(recipe, SampledRecipe)
    rollouts = _sampled(evidence, recipe, roles, display)
    grade(rollouts)
    own = roles.learner.logprobs(rollouts)
    evidence = replace(
        evidence,
        exact=roles.sampler.exact,
        rollouts=rollouts,
        seen=_seen(rollouts, roles.scorer),
        own_logprobs=[own[i] for i in range(len(rollouts))],
        scores=[None] * len(rollouts),
    )
    display.advance()
    if roles.scorer is None:
        return evidence
    evidence = _scored(evidence, recipe, roles.scorer, display)
    display.advance()
    if not isinstance(recipe, OpdRecipe):
        return evidence
    near = overlaps(roles.learner.student, roles.scorer, rollouts, recipe.sampler.temperature)
    display.advance()
    won = contests(recipe, evidence.task, roles, evidence.request.problems, display)
    return replace(evidence, overlaps=near, contests=won)


def chosen_rows(recipe: AnyRecipe, task: Task, count: int) -> list[int]:
    """The first `count` rows in the order of training, and for routes with too few of them their first ones."""
    order = list(
        dict.fromkeys(i for step in range(task.order.steps_per_epoch) for i in task.order.indices(step))
    )
    chosen, rest = order[:count], order[count:]
    routes = (*recipe.teachers, *recipe.reward_routes) if isinstance(recipe, OpdRecipe) else ()
    for route in routes:
        have = sum(task.data.prompts[i].route == route for i in chosen)
        mine = [i for i in rest if task.data.prompts[i].route == route]
        chosen += mine[: max(0, LEAST - have)]
    return chosen


def _sampled(evidence: Evidence, recipe: SampledRecipe, roles: LocalRoles, display: Display) -> list[Rollout]:
    """The student's responses: for rows of the run's first step the very ones that it will begin with."""
    samples = recipe.sampler.samples_per_prompt
    with display.phase("sampling", len(evidence.prompts) * samples) as bar:
        return sample_rollouts(
            roles.sampler,
            evidence.task.tokenizer,
            evidence.prompts,
            recipe.sampler,
            samples=samples,
            max_response_tokens=recipe.data.max_response_tokens,
            stream=(recipe.train.seed, TRAINING, 1),
            progress=bar.sampled,
        )


def _scored(evidence: Evidence, recipe: SampledRecipe, scorer: Scorer, display: Display) -> Evidence:
    """The rows' scores, and the same again: as they are, and backwards in two halves, which packs them otherwise."""
    rollouts, temperature = evidence.rollouts, recipe.sampler.temperature
    places = list(range(len(rollouts)))
    halves = [places[::-2], places[-2::-2]]
    with display.phase("scoring", 3 * len(rollouts)) as bar:
        scores, repeated = (
            scorer.score(rollouts, temperature=temperature, done=partial(bar.rows, before=before))
            for before in (0, len(rollouts))
        )
        other: dict[int, Scores | None] = {}
        for half in filter(None, halves):
            part = scorer.score([rollouts[i] for i in half], temperature=temperature)
            other |= zip(half, part, strict=True)
            bar.rows(2 * len(rollouts) + len(other))
    reordered = [other[i] for i in places]
    return replace(
        evidence,
        scores=scores,
        again={"when scored again": repeated, "in another order and packing": reordered},
    )


def _seen(rollouts: Sequence[Rollout], scorer: Scorer | None) -> list[SeenRow]:
    """Some rows, of every route if they are enough, as each model sees them."""
    firsts = list({r.prompt.route: r for r in reversed(rollouts)}.values())[::-1]
    distinct = {r.prompt.index: r for r in [*firsts, *rollouts][::-1]}
    return [_seen_row(r, scorer) for r in list(distinct.values())[::-1][:SHOWN_ROWS]]


def _seen_row(rollout: Rollout, scorer: Scorer | None) -> SeenRow:
    route, prompts = rollout.prompt.route, {"student": rollout.prompt_ids}
    if scorer is not None and route in scorer.routes:
        for part, seat in scorer.routes[route].parts:
            name = "reference" if route is None or part == "reference" else f"teacher {route}"
            (prompts[name],) = scorer.prompt_ids(seat, [rollout])
    return SeenRow(rollout.prompt.where, route, prompts, rollout.response_ids)


def _models(recipe: AnyRecipe) -> dict[str, Description]:
    """Every model that the recipe names."""
    frozen = recipe.frozen_models() if isinstance(recipe, SampledRecipe) else {}
    return {role: describe(spec, role) for role, spec in {"student": recipe.student, **frozen}.items()}


def _for_one_process(recipe: AnyRecipe) -> AnyRecipe:
    """Without what only a cluster or a whole run has."""
    train = recipe.train.model_copy(update={"max_staleness": 0})
    tracking = recipe.tracking.model_copy(update={"profile": False})
    return recipe.model_copy(update={"train": train, "tracking": tracking})


class _Ear(logging.Handler):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextmanager
def _heard() -> Iterator[list[str]]:
    """Warnings of gopd go into the list, not to the screen."""
    logger, ear = logging.getLogger("gopd"), _Ear()
    logger.addHandler(ear)
    logger.propagate = False
    try:
        yield ear.said
    finally:
        logger.removeHandler(ear)
        logger.propagate = True
