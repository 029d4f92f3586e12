"""Teachers and references on other processes as one scorer: rows are scored while others are still being sampled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gopd.cluster.actors import HiddenAway
from gopd.cluster.sampling import SamplerGroup
from gopd.cluster.watch import Member, Watch, value
from gopd.errors import Lost, RunFailed
from gopd.roles import Done, silent
from gopd.types import Rollout, Scores

PARTS = 4
"""Calls that each scorer gets for a batch."""
MAX_LOSSES = 8
"""Losses of scorers in one batch after which it is given up."""


class ScorerGroup:
    """Several scorers for each teacher."""

    def __init__(self, members: Mapping[str | None, Sequence[Member]], watch: Watch) -> None:
        self.members, self.watch = members, watch

    def begin(self, routes: Sequence[str | None], *, temperature: float, keep_hidden: bool) -> GroupScoring:
        """The scoring of a batch whose rows have these routes."""
        return GroupScoring(self, routes, temperature, keep_hidden)

    def sampler(self, teacher: str) -> SamplerGroup:
        """Lets a teacher answer."""
        return SamplerGroup(self.members[teacher], self.watch, exact=True)


@dataclass(frozen=True)
class _Call:
    """Rows that a scorer is at work on; `hidden` are references to where their hidden states will be, if kept."""

    member: Member
    rows: tuple[int, ...]
    hidden: Sequence[Any]


class GroupScoring:
    """Scores the rows of a batch in parts, each as soon as all its rows are finished.

    Which rows make a part depends on the batch alone, and not on what is finished when: the same run gives the same
    numbers to the bit.
    """

    def __init__(
        self, group: ScorerGroup, routes: Sequence[str | None], temperature: float, keep_hidden: bool
    ) -> None:
        self._group, self._options, self._rows = group, (temperature, keep_hidden), len(routes)
        self._rollouts: dict[int, Rollout] = {}
        self._part_of: dict[int, tuple[int, ...]] = {}
        self._route_of: dict[int, str | None] = {}
        for route, members in group.members.items():
            mine = [i for i, name in enumerate(routes) if name == route]
            size = max(1, -(-len(mine) // (PARTS * len(members))))
            for start in range(0, len(mine), size):
                part = tuple(mine[start : start + size])
                self._part_of |= dict.fromkeys(part, part)
                self._route_of |= dict.fromkeys(part, route)
        self._calls: dict[Any, _Call] = {}
        self._scores: dict[int, Scores] = {}
        self._losses = 0

    def add(self, number: int, rollout: Rollout) -> None:
        """A row of the batch is finished."""
        if number in self._part_of and number not in self._rollouts:
            self._rollouts[number] = rollout
            part = self._part_of[number]
            if all(row in self._rollouts for row in part):
                self._send(part)

    def _send(self, part: tuple[int, ...]) -> None:
        """Gives rows of one route to the scorer that has the fewest calls to answer."""
        busy = [call.member for call in self._calls.values()]
        member = min(self._group.members[self._route_of[part[0]]], key=busy.count)
        member.heard()
        batch = [self._rollouts[row] for row in part]
        kept = len(part) if self._options[1] else 0
        found = member.handle.score.options(num_returns=1 + kept).remote(batch, *self._options)
        scores, *hidden = found if kept else [found]
        self._calls[scores] = _Call(member, part, hidden)

    def scores(self, rollouts: Sequence[Rollout], done: Done = silent) -> list[Scores | None]:
        """Of the whole batch, in order; rows of a lost scorer are scored again. Raises RunFailed when that goes on."""
        assert len(rollouts) == self._rows
        for number, rollout in enumerate(rollouts):
            self.add(number, rollout)
        while self._calls:
            ready = self._group.watch.ready({ref: call.member for ref, call in self._calls.items()})
            call = self._calls.pop(ready)
            try:
                self._scores |= self._placed(call, value(ready, call.member))
            except Lost as error:
                self._again(call, error)
            done(len(self._scores))
        return [self._scores.get(i) for i in range(len(rollouts))]

    def _placed(self, call: _Call, scores: list[Scores | None]) -> dict[int, Scores]:
        """By row; with `keep_hidden` they say where their hidden states are. None has what a server scores."""
        away: list[HiddenAway | None] = [HiddenAway(reference) for reference in call.hidden]
        places = away or [None] * len(call.rows)
        rows = zip(call.rows, scores, places, strict=True)
        return {row: replace(score, hidden=place) for row, score, place in rows if score is not None}

    def _again(self, call: _Call, error: Lost) -> None:
        """Replaces a lost scorer, and sends again all that it had."""
        self._losses += 1
        if self._losses > MAX_LOSSES:
            raise RunFailed(
                f"scoring: {error}, and others before, {self._losses} times in one batch"
            ) from error
        lost = [ref for ref, other in self._calls.items() if other.member is call.member]
        parts = [call.rows, *(self._calls.pop(ref).rows for ref in lost)]
        call.member.replace()
        for part in parts:
            self._send(part)
