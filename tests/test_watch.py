"""Waiting for actors that fail in ways a whole run seldom shows: small actors on a real cluster of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import cloudpickle

from gopd.cluster import nodes
from gopd.cluster.learning import LearnerGroup
from gopd.cluster.nodes import await_devices, joined
from gopd.cluster.placement import Plan
from gopd.cluster.watch import HEALTH, Member, Watch, value
from gopd.errors import BadInput, CalledOff, Lost

FOREVER = 600.0


class Worker:
    """Does as it is told; loads unless it is told not to."""

    def __init__(self, flaw: str = "") -> None:
        self.flaw = flaw

    def load(self) -> None:
        if self.flaw:
            raise ValueError(self.flaw)
        self.model = "weights"

    def ping(self) -> None:
        pass

    def logprobs(self, what: str) -> str:
        """Rank 0 fails at once; the others wait for it, as in a collective."""
        if what == "first":
            raise RuntimeError("out of memory")
        time.sleep(FOREVER)
        return what

    def use(self) -> str:
        return self.model

    def wait(self) -> None:
        time.sleep(FOREVER)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    with joined("local", 4):
        yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def member(name: str, flaws: list[str] | None = None) -> Member:
    """A member whose actors, one after the other, have these flaws."""
    actor, left = ray.remote(concurrency_groups={HEALTH: 1})(Worker), list(flaws or [])
    return Member(name, lambda: actor.options(num_cpus=0).remote(left.pop(0) if left else ""))


@pytest.fixture
def members() -> Iterator[Callable[..., Member]]:
    made: list[Member] = []

    def make(*arguments: Any) -> Member:
        made.append(member(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.end()


def test_a_rank_that_fails_alone_is_heard_and_the_others_live(members: Callable[..., Member]) -> None:
    """The others wait for it where they hear nothing but pings: they are not taken for lost."""
    watch = Watch(timeout=20.0, heartbeat=20.0)
    ranks = [members("rank 0"), members("rank 1")]
    words = zip(ranks, ["first", "second"], strict=True)
    calls = {rank.handle.logprobs.remote(word): rank for rank, word in words}
    with pytest.raises(RuntimeError, match="out of memory") as raised:
        LearnerGroup(ranks, watch)._answers(calls)
    assert not isinstance(raised.value, Lost)


def test_a_successor_that_cannot_load_says_why(members: Callable[..., Member]) -> None:
    watch = Watch(timeout=60.0, heartbeat=60.0)
    engine = members("sampler 0", ["", "no room for the cache"])
    assert watch.all([engine], lambda handle: handle.use.remote()) == ["weights"]
    engine.replace()
    with pytest.raises(Lost, match="sampler 0 could not be loaded again: no room for the cache"):
        watch.all([engine], lambda handle: handle.use.remote())


def test_what_cannot_be_loaded_at_first_is_raised_as_it_was(members: Callable[..., Member]) -> None:
    engine = members("sampler 0", ["not a model"])
    with pytest.raises(ValueError, match="not a model"):
        value(engine.loaded, engine)


def test_a_wait_is_called_off(members: Callable[..., Member]) -> None:
    watch, engine = Watch(timeout=FOREVER, heartbeat=FOREVER), members("sampler 0")
    ended = list[str]()

    def wait() -> None:
        try:
            watch.all([engine], lambda handle: handle.wait.remote())
        except CalledOff:
            ended.append("called off")

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    watch.call_off()
    thread.join(30)
    assert ended == ["called off"]


class Busy(Worker):
    """A process that answers nothing while it saves, as when a large part is turned into bytes."""

    def save(self, folder: Any) -> None:
        """Stops before it answers: a signal to the process might reach this thread only after it has answered."""
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def test_a_process_may_be_silent_while_it_saves(members: Callable[..., Member]) -> None:
    watch = Watch(timeout=60.0, heartbeat=2.0)
    actor = ray.remote(concurrency_groups={HEALTH: 1})(Busy)
    rank = Member("rank 0", lambda: actor.options(num_cpus=0).remote())
    value(rank.loaded, rank)
    pid = ray.get(rank.handle.__ray_call__.remote(lambda _: os.getpid()))
    group = LearnerGroup([rank], watch)
    waking = threading.Timer(6.0, lambda: os.kill(pid, signal.SIGCONT))
    waking.start()
    group.save(Path("folder"))
    watch.all([rank], lambda handle: handle.ping.options(concurrency_group=HEALTH).remote())
    rank.end()


def test_lost_devices_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    have = {"CPU": 2.0}
    monkeypatch.setattr(nodes, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(nodes.ray, "cluster_resources", lambda: have)
    monkeypatch.setattr(nodes.ray, "nodes", lambda: [{"Alive": True, "Resources": have}])
    needed = Plan(False, [{"CPU": 1}] * 3, [], [], {})
    with pytest.raises(Lost, match=r"did not come back in 0 s: the cluster has 2 CPUs"):
        await_devices(needed, 0.0)
    with pytest.raises(BadInput):
        nodes.check_devices(needed)
    threading.Timer(0.2, lambda: have.update(CPU=3.0)).start()
    await_devices(needed, 30.0)


def test_a_supervised_process_hears_of_ctrl_c() -> None:
    script = (
        "import os, signal, subprocess, sys\n"
        "from gopd.supervise import SUPERVISED, supervised\n"
        "if supervised():\n    os.kill(os.getpid(), signal.SIGINT)\n    print('deaf')\nelse:\n"
        "    signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "    sys.exit(subprocess.call([sys.executable, *sys.orig_argv[1:]], env=os.environ | {SUPERVISED: 'x'}))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "deaf" not in done.stdout and "KeyboardInterrupt" in done.stderr
