"""Frozen models: loaded once, shared, and each row scored by its own teacher (and reference) only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gopd import views
from gopd.frozen import FrozenModels
from gopd.logprobs import Projection, Target
from gopd.model import LanguageModel
from gopd.packing import micro_batches, pack
from gopd.recipe import OpdRecipe, SampledRecipe
from gopd.roles import Done, Scoring, silent
from gopd.sampler import Finished, Progress, Request, Response, nothing
from gopd.sampler.torch import TorchSampler
from gopd.sections import ReferenceSection, SamplingSection, StudentSection, TeacherSection, View
from gopd.types import HiddenHere, Rollout, Scores


@dataclass(frozen=True)
class Seat:
    """A frozen model as one role uses it: with a view of the prompt. `adapters_off`: the base under LoRA."""

    model: LanguageModel
    view: View
    adapters_off: bool = False

    def as_frozen(self) -> AbstractContextManager[None]:
        """Inside, the model is frozen weights only."""
        return self.model.without_adapters() if self.adapters_off else nullcontext()


@dataclass(frozen=True)
class Route:
    """One teacher with what belongs to it. `reference` is None exactly when λ = 1.

    With method grpo there is one route, None, and the reference stands in the teacher's place.
    """

    teacher: Seat
    reference: Seat | None
    reward_scale: float

    @property
    def seats(self) -> list[Seat]:
        """Who scores a row."""
        return [self.teacher] if self.reference is None else [self.teacher, self.reference]

    @property
    def models(self) -> list[LanguageModel]:
        """Models that are needed side by side."""
        return [seat.model for seat in self.seats]


Named = TeacherSection | ReferenceSection | StudentSection
"""Where a frozen model is named in the recipe."""

TEACHER_SLOTS = 64
"""Rows that a teacher decodes side by side."""


class Scorer:
    """Teachers and references of a recipe; some `teachers` only where they are named.

    The base under the `student`'s adapters serves as reference; where the student is elsewhere (None) it is loaded.
    With `scoring.memory_gb` models take turns in memory, each coming in once in a batch.
    `forwards` counts the rows that each model has seen, by model name, so that waste shows.
    """

    def __init__(
        self,
        recipe: SampledRecipe,
        student: LanguageModel | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        teachers: Sequence[str] | None = None,
    ) -> None:
        self._recipe = recipe
        self._base = student if student is not None and student.adapters is not None else None
        self.student = student
        self._device, self._dtype = device, dtype
        limit = recipe.scoring.memory_gb
        budget = None if limit is None else int(limit * 1e9)
        self.frozen = FrozenModels(device=device, dtype=dtype, budget=budget)
        self.forwards: Counter[str] = Counter()
        self._without_teacher = {*recipe.reward_routes} if isinstance(recipe, OpdRecipe) else set[str]()
        names: list[str | None] = [None]
        if isinstance(recipe, OpdRecipe):
            names = [*(recipe.teachers if teachers is None else teachers)]
        for name in names:
            self.frozen.check(self._specs(name))
        self.routes: dict[str | None, Route] = {name: self._route(name) for name in names}

    def begin(self, *, temperature: float, keep_hidden: bool) -> Scoring:
        """The scoring of a batch; here it waits until all rows are there, as sampling needs the processor."""
        return _Whole(partial(self.score, temperature=temperature, keep_hidden=keep_hidden))

    def sampler(self, teacher: str) -> TorchSampler:
        """Lets a teacher answer."""
        return _FrozenSampler(self.routes[teacher].teacher.model, self.frozen)

    def score(
        self,
        rollouts: Sequence[Rollout],
        *,
        temperature: float,
        keep_hidden: bool = False,
        done: Done = silent,
    ) -> list[Scores | None]:
        """Scores every rollout under its own route, in order; None for routes without a teacher.

        With `keep_hidden` no head is applied: hidden states are returned for the learner to project.
        `done` is called with the number of rows finished after each forward.
        """
        scores: dict[int, Scores] = {}
        for route, rows, target in self.targets(rollouts):
            lengths = [len(rollouts[i].response_ids) for i in rows]
            if keep_hidden:
                pieces = zip(*(_cut(h, lengths) for h in _hidden(target)), strict=True)
                for i, (teacher_RD, reference_RD) in zip(rows, pieces, strict=True):
                    scores[i] = Scores(
                        route, target.reward_scale, hidden=HiddenHere(teacher_RD, reference_RD)
                    )
            else:
                ids_T = torch.tensor([t for i in rows for t in rollouts[i].response_ids], device=self._device)
                seen = target.score(ids_T, temperature)
                numbers = (seen.teacher_logprobs_T, seen.reference_logprobs_T, seen.log_partition_T)
                pieces = zip(*(_cut(n, lengths) for n in numbers), strict=True)
                for i, three in zip(rows, pieces, strict=True):
                    found = [None if n is None else n.cpu() for n in three]
                    if route is None:
                        scores[i] = Scores(None, 0.0, reference_logprobs_R=found[0])
                    else:
                        scores[i] = Scores(route, target.reward_scale, *found)
            done(len(scores))
        return [scores.get(i) for i in range(len(rollouts))]

    @torch.no_grad()
    def targets(self, rollouts: Sequence[Rollout]) -> Iterator[tuple[str | None, list[int], Target]]:
        """Yields (route, row numbers, target over their response tokens end to end), micro-batch by micro-batch."""
        known = self.routes.keys() | self._without_teacher
        assert all(r.prompt.route in known for r in rollouts), "a rollout without a teacher"
        named = {r.prompt.route for r in rollouts}
        order = self.frozen.order({n: route.models for n, route in self.routes.items() if n in named})
        for place, name in enumerate(order):
            route, later = self.routes[name], [self.routes[n].models for n in order[place + 1 :]]
            self.frozen.use(route.models, [model for models in later for model in models])
            rows = [i for i, r in enumerate(rollouts) if r.prompt.route == name]
            seats = route.seats
            prompts = [self.prompt_ids(seat, [rollouts[i] for i in rows]) for seat in seats]
            responses = [rollouts[i].response_ids for i in rows]
            longest = [max(views, key=len) for views in zip(*prompts, strict=True)]
            for group in micro_batches(longest, responses, self._recipe.train.tokens_per_micro_batch):
                projections = [
                    self._project(seat, [ids[g] for g in group], [responses[g] for g in group])
                    for seat, ids in zip(seats, prompts, strict=True)
                ]
                target = Target(
                    projections[0], projections[1] if len(seats) > 1 else None, route.reward_scale
                )
                yield name, [rows[g] for g in group], target

    def heads(self, route: str | None) -> tuple[Tensor, Tensor | None]:
        """The heads [V, D] of a route's teacher and reference, to be used before the next call or scoring."""
        seats = self.routes[route]
        self.frozen.use(seats.models)
        return seats.teacher.model.head_VD, None if seats.reference is None else seats.reference.model.head_VD

    def prompt_ids(self, seat: Seat, rollouts: Sequence[Rollout]) -> list[list[int]]:
        """The rollouts' prompts as a seat sees them."""
        if seat.view == self._recipe.student.view:
            return [r.prompt_ids for r in rollouts]
        return views.render(seat.view, [r.prompt for r in rollouts], seat.model.tokenizer)

    def _project(self, seat: Seat, prompts: list[list[int]], responses: list[list[int]]) -> Projection:
        self.forwards[seat.model.name] += len(prompts)
        with seat.as_frozen():
            return seat.model.project(pack(prompts, responses, self._device))

    def _specs(self, name: str | None) -> dict[str, Named]:
        """What a route loads, teacher first, by its role in messages; the base under adapters is there already."""
        recipe, specs = self._recipe, dict[str, Named]()
        own, role = recipe.reference, "reference"
        if isinstance(recipe, OpdRecipe) and name is not None:
            specs[f"teacher {name}"] = recipe.teachers[name]
            if recipe.reward_scale(name) == 1:
                return specs
            own, role = recipe.reference_of(name), f"reference of {name}"
        if own is not None:
            specs[role] = own
        elif self._base is None:
            specs["reference (student's initial weights)"] = recipe.student
        return specs

    def _route(self, name: str | None) -> Route:
        view, scale = self._recipe.student.view, 1.0
        seats = [
            Seat(self.frozen.get(spec, role), spec.view or view) for role, spec in self._specs(name).items()
        ]
        if isinstance(self._recipe, OpdRecipe) and name is not None:
            scale = self._recipe.reward_scale(name)
        needed = 1 if name is None or scale == 1 else 2
        if len(seats) < needed:
            assert self._base is not None
            seats.append(Seat(self._base, view, adapters_off=True))
        return Route(seats[0], seats[1] if needed == 2 else None, scale)

    @property
    def models(self) -> list[LanguageModel]:
        """The distinct frozen models that were loaded."""
        return self.frozen.models


class _FrozenSampler(TorchSampler):
    """A teacher's answers; its weights come into memory when it is asked."""

    def __init__(self, model: LanguageModel, frozen: FrozenModels) -> None:
        super().__init__(model, TEACHER_SLOTS)
        self._frozen = frozen

    def sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingSection,
        progress: Progress,
        finished: Finished = nothing,
    ) -> list[Response]:
        """Answers every request, in order."""
        self._frozen.use([self.model])
        return super().sample(requests, sampling, progress, finished)


@dataclass(frozen=True)
class _Whole:
    """Scores a batch when it is whole."""

    score: Callable[..., list[Scores | None]]

    def add(self, number: int, rollout: Rollout) -> None:
        """Too early."""

    def scores(self, rollouts: Sequence[Rollout], done: Done = silent) -> list[Scores | None]:
        """Of the whole batch, in order."""
        return self.score(rollouts, done=done)


def _hidden(target: Target) -> tuple[Tensor, Tensor | None]:
    return target.teacher.hidden_TD, None if target.reference is None else target.reference.hidden_TD


def _cut(values: Tensor | None, lengths: list[int]) -> list[Tensor] | list[None]:
    return [None] * len(lengths) if values is None else list(values.split(lengths))
