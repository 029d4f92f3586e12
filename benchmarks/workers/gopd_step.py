"""Whole steps of `gopd train`: a turn is a step. Argument: the recipe file, then overrides."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from turns import Stage

import gopd
from gopd.console import Display
from gopd.loop import train


class Turns(Display):
    """Waits for its turn before each step, and answers with the step's figures."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.started = 0.0

    @contextmanager
    def run(self, total: int, done: int) -> Iterator[None]:
        self._wait()
        with super().run(total, done):
            yield

    def step(self, step: int, total: int, figures: Mapping[str, float], seconds: float) -> None:
        self.stage.answer(seconds=time.perf_counter() - self.started, **figures)
        self._wait()

    def _wait(self) -> None:
        if self.stage.await_turn() is None:
            sys.exit()
        self.started = time.perf_counter()


if __name__ == "__main__":
    turns = Turns(Stage())
    train(gopd.load_recipe(sys.argv[1], sys.argv[2:]), display=turns)
