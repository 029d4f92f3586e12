"""Waiting for actors: what they return, what they raise, and what to do when they die or hang."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from gopd.errors import CalledOff, Lost

log = logging.getLogger(__name__)

HEALTH = "health"
"""The concurrency group in which actors answer pings, whatever else they are doing."""
TICK = 0.5
"""Seconds between looks at actors that have not answered."""


class Member:
    """One actor of a group, made by `make`, which makes its successor too.

    While `silent` it need not answer pings. `loaded` is its first call, which loads what it works with.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self.name, self.silent = name, False
        self._make = make
        self._start()

    def _start(self) -> None:
        self.handle = self._make()
        self._ping: Any = self.handle.load.remote()
        self.loaded = self._ping
        self._loading = True
        self._asked = self._heard = time.monotonic()

    def replace(self) -> None:
        """Puts a new actor in the place of one that is lost."""
        log.warning("%s was lost; another takes its place", self.name)
        self.end()
        self._start()

    def end(self) -> None:
        """Kills the actor, if it still lives."""
        ray.kill(self.handle, no_restart=True)

    def heard(self) -> None:
        """It has just answered, or been asked anew: both limits count from now."""
        self._asked = self._heard = time.monotonic()

    def check(self, timeout: float, heartbeat: float) -> None:
        """Kills an actor whose process answers no ping within `heartbeat`, or whose call takes over `timeout`.

        While it loads its models or is `silent`, only the longer limit counts.
        """
        now = time.monotonic()
        if self.silent:
            self._asked = now
        if self._ping is None:
            ping = self.handle.ping.options(concurrency_group=HEALTH)
            self._ping, self._asked = ping.remote(), now
        elif ray.wait([self._ping], timeout=0)[0]:
            self._ping, self._loading = None, False
        elif now - self._asked > heartbeat and not self._loading:
            self.end()
        if now - self._heard > timeout:
            self.end()


class Watch:
    """Waits for calls of several actors, and kills those that hang; both limits in seconds."""

    def __init__(self, timeout: float, heartbeat: float) -> None:
        self.timeout, self.heartbeat = timeout, heartbeat
        self._off = False

    def call_off(self) -> None:
        """From now on whoever waits, or comes to wait, gets CalledOff."""
        self._off = True

    def ready(self, pending: Mapping[Any, Member]) -> Any:
        """The next reference, of those given with their actors, that has a value or an error (or a stream's next)."""
        while True:
            found, _ = ray.wait(list(pending), num_returns=1, timeout=TICK, fetch_local=False)
            if found:
                pending[found[0]].heard()
                return found[0]
            if self._off:
                raise CalledOff
            for member in {id(m): m for m in pending.values()}.values():
                member.check(self.timeout, self.heartbeat)

    def each(self, calls: Mapping[Any, Member]) -> Iterator[tuple[Any, Member]]:
        """References as they become ready, each with its actor."""
        left = dict(calls)
        for member in left.values():
            member.heard()
        while left:
            reference = self.ready(left)
            yield reference, left.pop(reference)

    def all(self, members: Sequence[Member], call: Callable[[Any], Any]) -> list[Any]:
        """What every actor's handle returns to a call, in order; the first error ends it. Raises Lost."""
        calls = {call(member.handle): member for member in members}
        values = {id(member): value(reference, member) for reference, member in self.each(calls)}
        return [values[id(member)] for member in members]


def value(reference: Any, member: Member) -> Any:
    """A call's value; what it raised is raised here as it was. Raises Lost when the actor died."""
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RayError):
            raise Lost(f"{member.name} missed what another had: {_line(error.cause)}") from error
        if (cause := _load_error(reference, member)) is not None:
            raise Lost(f"{member.name} could not be loaded again: {_line(cause)}") from error
        raise error.cause from error
    except RayError as error:
        raise Lost(f"{member.name} was lost: {_line(error)}") from error


def _load_error(reference: Any, member: Member) -> BaseException | None:
    """Why a replaced actor has nothing to work with, if that is what another call of it failed for."""
    if reference is member.loaded or not ray.wait([member.loaded], timeout=0, fetch_local=False)[0]:
        return None
    try:
        ray.get(member.loaded)
    except RayTaskError as error:
        cause: BaseException = error.cause
        return cause
    return None


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
