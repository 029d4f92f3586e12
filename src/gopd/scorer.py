"""Frozen models: loaded once, shared, and each row scored by its own teacher (and reference) only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from gopd import views
from gopd.logprobs import Projection, Target
from gopd.model import LanguageModel, load_model, model_source
from gopd.packing import micro_batches, pack
from gopd.recipe import ModelSpec, OpdRecipe, View
from gopd.types import Rollout, Scores


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
    """One teacher with what belongs to it. `reference` is None exactly when λ = 1."""

    teacher: Seat
    reference: Seat | None
    reward_scale: float


class Scorer:
    """Teachers and references of a recipe.

    `forwards` counts the rows that each model has seen, by model name, so that waste shows.
    """

    def __init__(
        self, recipe: OpdRecipe, student: LanguageModel, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._recipe = recipe
        self.student = student
        self._device, self._dtype = device, dtype
        self._loaded: dict[tuple[str, str | None], LanguageModel] = {}
        self.forwards: Counter[str] = Counter()
        self.routes = {name: self._route(name) for name in recipe.teachers}

    def score(
        self,
        rollouts: Sequence[Rollout],
        *,
        temperature: float,
        keep_hidden: bool = False,
        done: Callable[[int], None] = lambda rows: None,
    ) -> list[Scores]:
        """Scores every rollout under its own route, in order.

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
                        route,
                        target.reward_scale,
                        teacher_hidden_RD=teacher_RD,
                        reference_hidden_RD=reference_RD,
                    )
            else:
                ids_T = torch.tensor([t for i in rows for t in rollouts[i].response_ids], device=self._device)
                seen = target.score(ids_T, temperature)
                numbers = (seen.teacher_logprobs_T, seen.reference_logprobs_T, seen.log_partition_T)
                pieces = zip(*(_cut(n, lengths) for n in numbers), strict=True)
                for i, three in zip(rows, pieces, strict=True):
                    scores[i] = Scores(
                        route, target.reward_scale, *(None if n is None else n.cpu() for n in three)
                    )
            done(len(scores))
        return [scores[i] for i in range(len(rollouts))]

    @torch.no_grad()
    def targets(self, rollouts: Sequence[Rollout]) -> Iterator[tuple[str, list[int], Target]]:
        """Yields (route, row numbers, target over their response tokens end to end), micro-batch by micro-batch."""
        assert all(r.prompt.route in self.routes for r in rollouts), "a rollout without a teacher"
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

    def heads(self, route: str) -> tuple[Tensor, Tensor | None]:
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

    def _route(self, name: str) -> Route:
        recipe = self._recipe
        reward_scale = recipe.reward_scale(name)
        teacher = Seat(self._load(recipe.teachers[name], f"teacher {name}"), recipe.teacher_view(name))
        return Route(teacher, None if reward_scale == 1 else self._reference(name), reward_scale)

    def _reference(self, route: str) -> Seat:
        view = self._recipe.student.view
        spec = self._recipe.reference_of(route)
        if spec is not None:
            return Seat(self._load(spec, f"reference of {route}"), spec.view or view)
        if self.student.adapters is not None:
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


def _hidden(target: Target) -> tuple[Tensor, Tensor | None]:
    return target.teacher.hidden_TD, None if target.reference is None else target.reference.hidden_TD


def _cut(values: Tensor | None, lengths: list[int]) -> list[Tensor] | list[None]:
    return [None] * len(lengths) if values is None else list(values.split(lengths))
