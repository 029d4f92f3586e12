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

MAX_LOSSES = 8
"""Losses of scorers in one batch after which it is given up."""


class ScorerGroup:
    """Several scorers for each teacher; `batch_tokens` is about what one call of a scorer gets."""

    def __init__(
        self, members: Mapping[str | None, Sequence[Member]], watch: Watch, batch_tokens: int
    ) -> None:
        self.members, self.watch, self.batch_tokens = members, watch, batch_tokens

    def begin(self, *, temperature: float, keep_hidden: bool) -> GroupScoring:
        """The scoring of a batch."""
        return GroupScoring(self, temperature, keep_hidden)

    def sampler(self, teacher: str) -> SamplerGroup:
        """Lets a teacher answer."""
        return SamplerGroup(self.members[teacher], self.watch, exact=True)


@dataclass(frozen=True)
class _Call:
    """Rows that a scorer is at work on; `hidden` is a reference to where their hidden states will be."""

    member: Member
    route: str | None
    rows: list[int]
    hidden: Any


class GroupScoring:
    """Sends rows to their teachers as soon as there are enough of them."""

    def __init__(self, group: ScorerGroup, temperature: float, keep_hidden: bool) -> None:
        self._group, self._options = group, (temperature, keep_hidden)
        self._rollouts: dict[int, Rollout] = {}
        self._waiting: dict[str | None, list[int]] = {}
        self._calls: dict[Any, _Call] = {}
        self._scores: dict[int, Scores] = {}
        self._losses = 0

    def add(self, number: int, rollout: Rollout) -> None:
        """A row of the batch is finished."""
        route = rollout.prompt.route if rollout.prompt.route in self._group.members else None
        if number in self._rollouts or route not in self._group.members:
            return
        self._rollouts[number] = rollout
        waiting = self._waiting.setdefault(route, [])
        waiting.append(number)
        rows = (self._rollouts[i] for i in waiting)
        if sum(len(r.prompt_ids) + len(r.response_ids) for r in rows) >= self._group.batch_tokens:
            self._send(route)

    def _send(self, route: str | None) -> None:
        """Gives the waiting rows of a route to the scorer that has the fewest calls to answer."""
        rows = self._waiting.pop(route, [])
        if rows:
            busy = [call.member for call in self._calls.values()]
            member = min(self._group.members[route], key=busy.count)
            member.heard()
            batch = [self._rollouts[i] for i in rows]
            scores, hidden = member.handle.score.options(num_returns=2).remote(batch, *self._options)
            self._calls[scores] = _Call(member, route, rows, hidden)

    def scores(self, rollouts: Sequence[Rollout], done: Done = silent) -> list[Scores | None]:
        """Of the whole batch, in order; rows of a lost scorer are scored again. Raises RunFailed when that goes on."""
        for number, rollout in enumerate(rollouts):
            self.add(number, rollout)
        for route in list(self._waiting):
            self._send(route)
        while self._calls:
            ready = self._group.watch.ready({ref: call.member for ref, call in self._calls.items()})
            call = self._calls.pop(ready)
            try:
                found: list[Scores] = value(ready, call.member)
                self._scores |= zip(call.rows, self._placed(call, found), strict=True)
            except Lost as error:
                self._again(call, error)
            done(len(self._scores))
        return [self._scores.get(i) for i in range(len(rollouts))]

    def _placed(self, call: _Call, scores: list[Scores]) -> list[Scores]:
        """With `keep_hidden`, the scores with the place of their hidden states."""
        if not self._options[1]:
            return scores
        return [replace(score, hidden=HiddenAway(call.hidden, i)) for i, score in enumerate(scores)]

    def _again(self, call: _Call, error: Lost) -> None:
        """Replaces a lost scorer and sends all it had; calls of its successor come after."""
        self._losses += 1
        if self._losses > MAX_LOSSES:
            raise RunFailed(
                f"scoring: {error}, and others before, {self._losses} times in one batch"
            ) from error
        lost = [ref for ref, other in self._calls.items() if other.member is call.member]
        rows = call.rows + [row for ref in lost for row in self._calls.pop(ref).rows]
        call.member.replace()
        self._waiting.setdefault(call.route, []).extend(rows)
        self._send(call.route)
