"""A group of engines as one sampler: rows spread over them, and what a lost engine did not finish is done again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from torch import Tensor

from gopd.cluster.actors import Piece
from gopd.cluster.watch import Member, Watch, value
from gopd.errors import Lost, RunFailed
from gopd.sampler import Finished, Progress, Request, Response, nothing
from gopd.sections import SamplingSection

MAX_LOSSES = 8
"""Losses of engines in one batch after which it is given up: something else must be wrong."""


class SamplerGroup:
    """Engines that all have a method `sample`; the sampler of teachers, and with `adopt` the student's."""

    def __init__(self, members: Sequence[Member], watch: Watch, *, exact: bool) -> None:
        self.members, self.watch, self.exact = members, watch, exact
        self._weights: list[Any] = []

    def sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingSection,
        progress: Progress,
        finished: Finished = nothing,
    ) -> list[Response]:
        """Answers every request, in order. Raises RunFailed when engines keep being lost."""
        flight = _Flight(requests, progress, finished)
        losses = 0
        while waiting := flight.waiting():
            for member in self._round(flight, self._shares(waiting, requests), sampling):
                losses += 1
                if losses > MAX_LOSSES:
                    raise RunFailed(
                        f"sampling: {member.name} and others were lost {losses} times in one batch"
                    )
                self.restore(member)
        return [flight.done[i] for i in range(len(requests))]

    def _shares(self, waiting: list[int], requests: Sequence[Request]) -> Mapping[int, list[int]]:
        """Request numbers by engine: samples of one prompt stay together, prompts take turns."""
        shares: dict[int, list[int]] = {}
        turn: dict[tuple[int, ...], int] = {}
        for number in waiting:
            prompt = tuple(requests[number].prompt_ids)
            engine = turn.setdefault(prompt, len(turn) % len(self.members))
            shares.setdefault(engine, []).append(number)
        return shares

    def _round(
        self, flight: _Flight, shares: Mapping[int, list[int]], sampling: SamplingSection
    ) -> list[Member]:
        """Lets every engine answer its share; returns those that were lost."""
        streams: dict[Any, tuple[int, Member]] = {}
        for engine, numbers in shares.items():
            member = self.members[engine]
            member.heard()
            asked = [flight.requests[number] for number in numbers]
            streams[member.handle.sample.options(num_returns="streaming").remote(asked, sampling)] = (
                engine,
                member,
            )
        lost = []
        while streams:
            stream = self.watch.ready({stream: member for stream, (_, member) in streams.items()})
            engine, member = streams[stream]
            try:
                piece: Piece = value(next(stream), member)
                flight.take(engine, shares[engine], piece)
            except StopIteration:
                del streams[stream]
            except Lost:
                del streams[stream]
                lost.append(member)
        return lost

    def update(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Gives every engine weights that this process has; on a cluster they come by `adopt`, from actor to actor."""
        self.adopt([ray.put(list(weights))])

    def adopt(self, pieces: Sequence[Any]) -> None:
        """Every engine takes weights by references to their pieces; these are kept for engines that are replaced."""
        self._weights = list(pieces)
        for reference, member in self.watch.each({m.handle.update.remote(pieces): m for m in self.members}):
            try:
                value(reference, member)
            except Lost:
                self.restore(member)

    def restore(self, member: Member) -> None:
        """Replaces a lost engine by one with the same weights."""
        member.replace()
        if self._weights:
            self.watch.all([member], lambda handle: handle.update.remote(self._weights))


class _Flight:
    """The rows of one batch: which are answered, and whom to tell."""

    def __init__(self, requests: Sequence[Request], progress: Progress, finished: Finished) -> None:
        self.requests, self._progress, self._finished = requests, progress, finished
        self.done: dict[int, Response] = {}
        self._tokens: dict[int, int] = {}

    def waiting(self) -> list[int]:
        """Requests without an answer."""
        return [i for i in range(len(self.requests)) if i not in self.done]

    def take(self, engine: int, numbers: list[int], piece: Piece) -> None:
        """Notes what an engine reports of the requests it has."""
        for place, response in piece.rows:
            self.done[numbers[place]] = response
            self._finished(numbers[place], response)
        self._tokens[engine] = piece.tokens
        self._progress(len(self.done), len(self.requests), sum(self._tokens.values()))
