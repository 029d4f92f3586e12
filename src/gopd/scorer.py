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
from gopd.logprobs import Projection, Target
from gopd.model import LanguageModel, load_model, model_source
from gopd.packing import micro_batches, pack
from gopd.recipe import OpdRecipe, SampledRecipe
from gopd.roles import Done, Scoring, silent
from gopd.sampler.torch import TorchSampler
from gopd.sections import ModelSpec, ReferenceSection, View
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


TEACHER_SLOTS = 64
"""Rows that a teacher decodes side by side."""


class Scorer:
    """Teachers and references of a recipe; some `teachers` only where they are named.

    The base under the `student`'s adapters serves as reference; where the student is elsewhere (None) it is loaded.
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
        self.student = student
        self._device, self._dtype = device, dtype
        self._loaded: dict[tuple[str, str | None], LanguageModel] = {}
        self.forwards: Counter[str] = Counter()
        self._without_teacher = {*recipe.reward_routes} if isinstance(recipe, OpdRecipe) else set[str]()
        self.routes: dict[str | None, Route] = {}
        if isinstance(recipe, OpdRecipe):
            self.routes |= {
                n: self._route(recipe, n) for n in (recipe.teachers if teachers is None else teachers)
            }
        else:
            self.routes[None] = Route(self._reference(recipe.reference, "reference"), None, 1.0)

    def begin(self, routes: Sequence[str | None], *, temperature: float, keep_hidden: bool) -> Scoring:
        """The scoring of a batch; here it waits until all rows are there, as sampling needs the processor."""
        return _Whole(partial(self.score, temperature=temperature, keep_hidden=keep_hidden))

    def sampler(self, teacher: str) -> TorchSampler:
        """Lets a teacher answer."""
        return TorchSampler(self.routes[teacher].teacher.model, TEACHER_SLOTS)

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
        for name, route in self.routes.items():
            rows = [i for i, r in enumerate(rollouts) if r.prompt.route == name]
            if not rows:
                continue
            seats = [route.teacher] if route.reference is None else [route.teacher, route.reference]
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
        """The heads [V, D] of a route's teacher and reference."""
        seats = self.routes[route]
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

    def _route(self, recipe: OpdRecipe, name: str) -> Route:
        reward_scale = recipe.reward_scale(name)
        teacher = Seat(self._load(recipe.teachers[name], f"teacher {name}"), recipe.teacher_view(name))
        if reward_scale == 1:
            return Route(teacher, None, reward_scale)
        return Route(
            teacher, self._reference(recipe.reference_of(name), f"reference of {name}"), reward_scale
        )

    def _reference(self, spec: ReferenceSection | None, role: str) -> Seat:
        view = self._recipe.student.view
        if spec is not None:
            return Seat(self._load(spec, role), spec.view or view)
        if self.student is not None and self.student.adapters is not None:
            return Seat(self.student, view, adapters_off=True)
        return Seat(self._load(self._recipe.student, "reference (student's initial weights)"), view)

    def _load(self, spec: ModelSpec, role: str) -> LanguageModel:
        key = (model_source(spec, role), spec.revision)
        if key not in self._loaded:
            self._loaded[key] = load_model(spec, role, device=self._device, dtype=self._dtype).freeze()
        return self._loaded[key]

    @property
    def models(self) -> list[LanguageModel]:
        """The distinct frozen models in memory."""
        return list(self._loaded.values())


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
