"""Sampling ahead of the learner: how far, by which weights, and how it ends."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from gopd.collect import AheadCollector, Collected
from gopd.console import Display
from gopd.metrics import Clock
from gopd.recipe_file import parse_recipe
from runs import opd_tree

STEPS = 8
PATIENCE = 20.0


class Weights:
    """Stands for roles with a sampler of its own: knows what was published, and what the sampler has."""

    apart = True

    def __init__(self) -> None:
        self.published = 0

    def adopt(self) -> int:
        return self.published

    def call_off(self) -> None:
        pass


class Task:
    total_steps = STEPS


class Recorded(AheadCollector):
    """Batches that are made as soon as they may, each step noted when it is begun."""

    def collect(self, step: int) -> Collected:
        self.adopt(Clock())
        begun[step].set()
        if step == fails:
            raise RuntimeError("no more")
        if step == waits:
            while True:
                self.meanwhile()
        return Collected([], [], self.version, Clock())


begun: dict[int, threading.Event]
fails = waits = -1


@pytest.fixture(autouse=True)
def fresh() -> None:
    global begun, fails, waits
    begun = {step: threading.Event() for step in range(1, STEPS + 1)}
    fails = waits = -1


def recorded(tmp_path: Path, staleness: int, weights: Weights) -> Recorded:
    tree = opd_tree(tmp_path, tmp_path, {"a": tmp_path}, train={"max_staleness": staleness, "steps": STEPS})
    return Recorded(parse_recipe(tree), cast(Any, Task()), cast(Any, weights), Display(), 1)


@pytest.mark.parametrize("staleness", [1, 2, 4])
def test_it_runs_ahead_by_the_staleness_and_no_further(tmp_path: Path, staleness: int) -> None:
    weights = Weights()
    with closing(recorded(tmp_path, staleness, weights)) as batches:
        for step in range(1, STEPS + 1):
            for ahead in range(step, min(STEPS, step + staleness) + 1):
                assert begun[ahead].wait(PATIENCE), "while a step is trained, the next ones are sampled"
            beyond = step + staleness + 1
            assert beyond > STEPS or not begun[beyond].wait(0.05), "its weights would be too old"
            got = batches.take(step)
            assert step - 1 - got.version == min(staleness, step - 1)
            weights.published = step
            batches.published(step)


def test_it_takes_the_newest_weights_there_are(tmp_path: Path) -> None:
    weights = Weights()
    with closing(recorded(tmp_path, 4, weights)) as batches:
        assert begun[5].wait(PATIENCE)
        weights.published = 3
        for step in (1, 2, 3):
            batches.take(step)
            batches.published(step)
        assert begun[8].wait(PATIENCE)
        for step, version in ((4, 0), (5, 0), (6, 3), (7, 3), (8, 3)):
            assert batches.take(step).version == version


def test_what_goes_wrong_is_raised_where_the_batch_is_wanted(tmp_path: Path) -> None:
    global fails
    fails = 2
    with closing(recorded(tmp_path, 4, Weights())) as batches:
        batches.take(1)
        with pytest.raises(RuntimeError, match="no more"):
            batches.take(2)


def test_closing_gives_up_the_batch_under_way(tmp_path: Path) -> None:
    global waits
    waits = 3
    batches = recorded(tmp_path, 4, Weights())
    assert begun[3].wait(PATIENCE)
    assert batches._thread.is_alive(), "it has not given up yet"
    batches.close()
    assert not batches._thread.is_alive() and batches._error is None


def test_paused_nothing_is_begun(tmp_path: Path) -> None:
    weights = Weights()
    with closing(recorded(tmp_path, 1, weights)) as batches:
        assert begun[2].wait(PATIENCE)
        batches.take(1)
        with batches.paused():
            weights.published = 1
            batches.published(1)
            assert not begun[3].wait(0.1)
        assert begun[3].wait(PATIENCE)
