"""Each row scored by its own teacher (and reference) only, in this process or by servers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gopd import views
from gopd.frozen import FrozenModels
from gopd.logprobs import Projection, Target
from gopd.model import LanguageModel, load_tokenizer
from gopd.packing import micro_batches, pack
from gopd.recipe import OpdRecipe, SampledRecipe
from gopd.remote import Server
from gopd.roles import Done, Scoring, silent
from gopd.sampler.torch import TorchSampler
from gopd.seats import FrozenSampler, Part, RemoteSeat, Route, Seat
from gopd.sections import FrozenSection, RemoteSection, StudentSection
from gopd.types import HiddenHere, Rollout, Scores

Named = FrozenSection | StudentSection
"""Where a frozen model is named in the recipe."""
Known = dict[str, Tensor]
"""Numbers of a row's response tokens: `teacher`, `reference`, `partition`."""

TEACHER_SLOTS = 64
"""Rows that a teacher decodes side by side."""


class Scorer:
    """Teachers and references of a recipe; of some routes only where they are named.

    The base under the `student`'s adapters serves as reference; where the student is elsewhere (None) it is loaded.
    With `scoring.memory_gb` models take turns in memory, each coming in once in a batch.
    Servers are asked while the models here compute; `gopd.setup` tries them out beforehand.
    `forwards` counts the rows that each model has seen, by model name, so that waste shows.
    """

    def __init__(
        self,
        recipe: SampledRecipe,
        student: LanguageModel | None,
        *,
        device: torch.device,
        dtype: torch.dtype,
        routes: Sequence[str | None] | None = None,
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
        names = recipe.teacher_routes() if routes is None else routes
        self._servers: dict[tuple[RemoteSection, str], Server] = {}
        for name in names:
            here = {role: spec for role, spec in self._specs(name).items() if server_of(spec) is None}
            self.frozen.check(here)
        self.routes: dict[str | None, Route] = {name: self._route(name) for name in names}

    def begin(self, routes: Sequence[str | None], *, temperature: float, keep_hidden: bool) -> Scoring:
        """The scoring of a batch; here it waits until all rows are there, as sampling needs the processor."""
        return _Whole(partial(self.score, temperature=temperature, keep_hidden=keep_hidden))

    def sampler(self, teacher: str) -> TorchSampler:
        """Lets a teacher answer."""
        seat = self.routes[teacher].teacher
        assert isinstance(seat, Seat), "the recipe is refused"
        return FrozenSampler(seat.model, self.frozen, TEACHER_SLOTS)

    def score(
        self,
        rollouts: Sequence[Rollout],
        *,
        temperature: float,
        keep_hidden: bool = False,
        done: Done = silent,
    ) -> list[Scores | None]:
        """Scores every rollout under its own route, in order; None for routes without a teacher.

        With `keep_hidden` no head is applied: hidden states are returned for the learner to project, and None for
        routes with a server, which has none to give. `done` is called with the number of rows finished after each
        forward or answer. Raises RunFailed when a server does not answer.
        """
        if keep_hidden:
            return self._hidden(rollouts, done)
        known: list[Known] = [{} for _ in rollouts]
        finished = 0
        with ExitStack() as servers:
            asked = self._ask(rollouts, servers)
            waiting = Counter(i for i, _ in asked.values())
            for name, rows, target in self.targets(rollouts, self.routes.keys()):
                self._add(known, name, rows, rollouts, target, temperature)
                finished += sum(not waiting[i] for i in rows)
                done(finished)
            for answer in as_completed(asked):
                i, part = asked[answer]
                known[i][part] = answer.result()
                waiting[i] -= 1
                finished += not waiting[i]
                done(finished)
        return [self._scores(r.prompt.route, row) for r, row in zip(rollouts, known, strict=True)]

    def _ask(self, rollouts: Sequence[Rollout], servers: ExitStack) -> dict[Future[Tensor], tuple[int, Part]]:
        """Sends rows to the servers that score them; which row and for whom, by the answer to come."""
        asked, opened = dict[Future[Tensor], tuple[int, Part]](), set[Server]()
        for name, route in self.routes.items():
            rows = [i for i, r in enumerate(rollouts) if r.prompt.route == name]
            for part, seat in route.parts if rows else []:
                if isinstance(seat, Seat):
                    continue
                if seat.server not in opened:
                    opened.add(servers.enter_context(seat.server))
                self.forwards[seat.server.name] += len(rows)
                for i, ids in zip(rows, self.prompt_ids(seat, [rollouts[i] for i in rows]), strict=True):
                    asked[seat.server.submit(ids, rollouts[i].response_ids)] = (i, part)
        return asked

    def _add(
        self,
        known: list[Known],
        name: str | None,
        rows: list[int],
        rollouts: Sequence[Rollout],
        target: Target,
        temperature: float,
    ) -> None:
        """What the models here say about some rows of a route; log Z where teacher and reference are both here."""
        responses = [rollouts[i].response_ids for i in rows]
        ids_T = torch.tensor([t for response in responses for t in response], device=self._device)
        seen = target.score(ids_T, temperature)
        numbers = (seen.teacher_logprobs_T, seen.reference_logprobs_T, seen.log_partition_T)
        here: list[Part] = [part for part, seat in self.routes[name].parts if isinstance(seat, Seat)]
        for part, values_T in zip((*here, "partition"), numbers, strict=False):
            if values_T is not None:
                for i, values_R in zip(rows, values_T.split(list(map(len, responses))), strict=True):
                    known[i][part] = values_R.cpu()

    def _scores(self, name: str | None, known: Known) -> Scores | None:
        if not known:
            return None
        if name is None:
            return Scores(None, 0.0, reference_logprobs_R=known["teacher"])
        numbers = (known.get("teacher"), known.get("reference"), known.get("partition"))
        return Scores(name, self.routes[name].reward_scale, *numbers)

    def _hidden(self, rollouts: Sequence[Rollout], done: Done) -> list[Scores | None]:
        scores: dict[int, Scores] = {}
        here = [name for name, route in self.routes.items() if route.is_local]
        for name, rows, target in self.targets(rollouts, here):
            lengths = [len(rollouts[i].response_ids) for i in rows]
            teacher_RD = target.teacher.hidden_TD.split(lengths)
            reference_RD = (
                [None] * len(rows) if target.reference is None else target.reference.hidden_TD.split(lengths)
            )
            for i, *states in zip(rows, teacher_RD, reference_RD, strict=True):
                scores[i] = Scores(name, target.reward_scale, hidden=HiddenHere(*states))
            done(len(scores))
        return [scores.get(i) for i in range(len(rollouts))]

    @torch.no_grad()
    def targets(
        self, rollouts: Sequence[Rollout], names: Collection[str | None]
    ) -> Iterator[tuple[str | None, list[int], Target]]:
        """Yields (route, row numbers, target over their response tokens end to end), micro-batch by micro-batch.

        Of the named routes, as far as they are in this process: where the reference or the teacher is behind a server,
        the target is the other one alone.
        """
        known = self.routes.keys() | self._without_teacher
        assert all(r.prompt.route in known for r in rollouts), "a rollout without a teacher"
        named = {r.prompt.route for r in rollouts} & {*names}
        order = self.frozen.order({n: r.models for n, r in self.routes.items() if n in named and r.local})
        for place, name in enumerate(order):
            route, later = self.routes[name], [self.routes[n].models for n in order[place + 1 :]]
            self.frozen.use(route.models, [model for models in later for model in models])
            rows = [i for i, r in enumerate(rollouts) if r.prompt.route == name]
            seats = route.local
            prompts = [self.prompt_ids(seat, [rollouts[i] for i in rows]) for seat in seats]
            responses = [rollouts[i].response_ids for i in rows]
            longest = [max(views, key=len) for views in zip(*prompts, strict=True)]
            for group in micro_batches(longest, responses, self._recipe.train.tokens_per_micro_batch):
                projections = [
                    self._project(seat, [ids[g] for g in group], [responses[g] for g in group])
                    for seat, ids in zip(seats, prompts, strict=True)
                ]
                both = len(seats) > 1
                scale = route.reward_scale if both else 1.0
                target = Target(projections[0], projections[1] if both else None, scale)
                yield name, [rows[g] for g in group], target

    def heads(self, route: str | None) -> tuple[Tensor, Tensor | None]:
        """The heads [V, D] of a route's teacher and reference, to be used before the next call or scoring."""
        seats = self.routes[route]
        assert seats.is_local, "servers have no heads to give"
        self.frozen.use(seats.models)
        heads = [model.head_VD for model in seats.models]
        return heads[0], heads[1] if len(heads) > 1 else None

    def prompt_ids(self, seat: Seat | RemoteSeat, rollouts: Sequence[Rollout]) -> list[list[int]]:
        """The rollouts' prompts as a seat sees them."""
        if seat.view == self._recipe.student.view:
            return [r.prompt_ids for r in rollouts]
        return views.render(seat.view, [r.prompt for r in rollouts], seat.tokenizer)

    def _project(self, seat: Seat, prompts: list[list[int]], responses: list[list[int]]) -> Projection:
        self.forwards[seat.model.name] += len(prompts)
        with seat.as_frozen():
            return seat.model.project(pack(prompts, responses, self._device))

    def _specs(self, name: str | None) -> dict[str, Named]:
        """What a route loads, teacher first, by its role in messages; the base under adapters is there already."""
        specs: dict[str, Named] = {**self._recipe.frozen(name)}
        if len(specs) < self._needed(name) and self._base is None:
            specs["reference (student's initial weights)"] = self._recipe.student
        return specs

    def _scale(self, name: str | None) -> float:
        return (
            self._recipe.reward_scale(name)
            if isinstance(self._recipe, OpdRecipe) and name is not None
            else 1.0
        )

    def _needed(self, name: str | None) -> int:
        """How many models score a row of a route."""
        return 1 if self._scale(name) == 1 else 2

    def _route(self, name: str | None) -> Route:
        seats, scale = [self._seat(spec, role) for role, spec in self._specs(name).items()], self._scale(name)
        needed = self._needed(name)
        if len(seats) < needed:
            assert self._base is not None
            seats.append(Seat(self._base, self._recipe.student.view, adapters_off=True))
        return Route(seats[0], seats[1] if needed == 2 else None, scale)

    def _seat(self, spec: Named, role: str) -> Seat | RemoteSeat:
        view, section = spec.view or self._recipe.student.view, server_of(spec)
        if section is None:
            return Seat(self.frozen.get(spec, role), view)
        server = self._servers.setdefault((section, spec.model), Server(section, spec.model, role))
        return RemoteSeat(server, view, load_tokenizer(spec, role))

    @property
    def models(self) -> list[LanguageModel]:
        """The distinct frozen models that were loaded."""
        return self.frozen.models


@dataclass(frozen=True)
class _Whole:
    """Scores a batch when it is whole."""

    score: Callable[..., list[Scores | None]]

    def add(self, number: int, rollout: Rollout) -> None:
        """Too early."""

    def scores(self, rollouts: Sequence[Rollout], done: Done = silent) -> list[Scores | None]:
        """Of the whole batch, in order."""
        return self.score(rollouts, done=done)


def server_of(spec: Named) -> RemoteSection | None:
    """The server that scores in a model's place, if there is one."""
    return spec.server if isinstance(spec, FrozenSection) else None
