"""A group of engines as one sampler: rows spread over them, and what a lost engine did not finish is done again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ray
from torch import Tensor

from gopd.cluster.actors import Piece
from gopd.cluster.watch import HEALTH, Member, Watch, value
from gopd.errors import Lost, RunFailed
from gopd.sampler import Finished, Progress, Request, Response, nothing
from gopd.sections import SamplingSection

MAX_LOSSES = 8
"""Losses of engines in one batch after which it is given up: something else must be wrong."""


class SamplerGroup:
    """Engines that all have a method `sample`; the sampler of teachers, and with `adopt` the student's."""

    def __init__(self, members: Sequence[Member], watch: Watch, *, exact: bool) -> None:
        self.members, self.watch, self.exact = members, watch, exact
        self._weights: tuple[Sequence[Any], int] = ([], 0)

    def sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingSection,
        progress: Progress,
        finished: Finished = nothing,
    ) -> list[Response]:
        """Answers every request, in order. Raises RunFailed when engines keep being lost.

        A lost engine's successor gets the rows that it had not finished. Where log-probs are exact it gets all rows of
        its share: the same rows side by side give the same numbers to the bit.
        """
        flight = _Flight(requests, progress, finished)
        shares = self._shares(requests)
        waiting, losses = shares, 0
        while waiting:
            lost = self._round(flight, waiting, sampling)
            losses += len(lost)
            if losses > MAX_LOSSES:
                raise RunFailed(
                    f"sampling: {self.members[lost[0]].name} and others were lost, {losses} in one batch"
                )
            for engine in lost:
                self.restore(self.members[engine])
            waiting = {
                engine: shares[engine] if self.exact else flight.missing(shares[engine]) for engine in lost
            }
        return [flight.done[i] for i in range(len(requests))]

    def _shares(self, requests: Sequence[Request]) -> Mapping[int, list[int]]:
        """Request numbers by engine: samples of one prompt stay together, prompts take turns."""
        shares: dict[int, list[int]] = {}
        turn: dict[tuple[int, ...], int] = {}
        for number, request in enumerate(requests):
            engine = turn.setdefault(tuple(request.prompt_ids), len(turn) % len(self.members))
            shares.setdefault(engine, []).append(number)
        return shares

    def _round(
        self, flight: _Flight, shares: Mapping[int, list[int]], sampling: SamplingSection
    ) -> list[int]:
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
        lost = list[int]()
        while streams:
            stream = self.watch.ready({stream: member for stream, (_, member) in streams.items()})
            engine, member = streams[stream]
            try:
                piece: Piece = value(next(stream), member)
                flight.take(engine, shares[engine], piece)
            except (StopIteration, Lost):
                del streams[stream]
                if flight.missing(shares[engine]):
                    lost.append(engine)
        return lost

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Gives every engine weights that this process has; on a cluster they come by `adopt`, from actor to actor."""
        self.adopt([ray.put(list(weights))], version)

    def offer(self, pieces: Sequence[Any], version: int) -> None:
        """Tells every engine of newer weights; those that sample take them as soon as they can, and nobody waits."""
        self._weights = (pieces, version)
        for member in self.members:
            member.handle.offer.options(concurrency_group=HEALTH).remote(pieces, version)

    def adopt(self, pieces: Sequence[Any], version: int) -> None:
        """Every engine takes weights by references to their pieces; these are kept for engines that are replaced."""
        self._weights = (pieces, version)
        calls = {m.handle.update.remote(pieces, version): m for m in self.members}
        for reference, member in self.watch.each(calls):
            try:
                value(reference, member)
            except Lost:
                self.restore(member)

    def restore(self, member: Member) -> None:
        """Replaces a lost engine by one with the same weights."""
        member.replace()
        if self._weights[0]:
            self.watch.all([member], lambda handle: handle.update.remote(*self._weights))


class _Flight:
    """The rows of one batch: which are answered, and whom to tell."""

    def __init__(self, requests: Sequence[Request], progress: Progress, finished: Finished) -> None:
        self.requests, self._progress, self._finished = requests, progress, finished
        self.done: dict[int, Response] = {}
        self._tokens: dict[int, int] = {}

    def missing(self, numbers: list[int]) -> list[int]:
        """Those of some requests that have no answer."""
        return [number for number in numbers if number not in self.done]

    def take(self, engine: int, numbers: list[int], piece: Piece) -> None:
        """Notes what an engine reports of the requests it has."""
        for place, response in piece.rows:
            if numbers[place] not in self.done:  # a second time it is the same
                self.done[numbers[place]] = response
                self._finished(numbers[place], response)
        self._tokens[engine] = piece.tokens
        self._progress(len(self.done), len(self.requests), sum(self._tokens.values()))
