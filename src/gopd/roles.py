"""The three roles as the loop knows them: in this process (`setup`), or groups of actors on a cluster (`cluster`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from gopd.guard import NONE, Bounds
from gopd.sampler import Sampler
from gopd.types import Rollout, Scores, TokenTerms

if TYPE_CHECKING:
    from gopd.cluster.placement import Plan
    from gopd.learner import Update
    from gopd.profile import Profiler

Done = Callable[[int], None]
"""Called with the number of rows finished so far."""


def silent(rows: int) -> None:
    """Nobody watches."""


class Scoring(Protocol):
    """The scoring of one batch, which may start before all of it is there."""

    def add(self, number: int, rollout: Rollout) -> None:
        """A row of the batch is finished; the call returns at once."""
        ...

    def scores(self, rollouts: Sequence[Rollout], done: Done = silent) -> list[Scores | None]:
        """Of the whole batch, in order; None for routes without a teacher."""
        ...


class Scorer(Protocol):
    """Teachers and references."""

    def begin(self, routes: Sequence[str | None], *, temperature: float, keep_hidden: bool) -> Scoring:
        """The scoring of a batch whose rows have these routes.

        With `keep_hidden` scores hold hidden states, for the learner to project, in place of log-probs.
        """
        ...

    def sampler(self, teacher: str) -> Sampler:
        """Lets a teacher answer."""
        ...


class Learner(Protocol):
    """The student's weights and their optimizer; `gopd.learner.Learner` says more."""

    updates: int

    def update(
        self,
        rollouts: Sequence[Rollout],
        scores: Sequence[Scores | None],
        terms: Sequence[TokenTerms | None],
        done: Done = silent,
        bounds: Bounds = NONE,
    ) -> Update:
        """One optimizer step, unless it is out of bounds."""
        ...

    def logprobs(self, rollouts: Sequence[Rollout]) -> dict[int, Tensor]:
        """The present weights' log-probs of every response, by row."""
        ...

    def kl_to_target(
        self, rollouts: Sequence[Rollout], scores: Sequence[Scores | None], temperature: float
    ) -> dict[int, float]:
        """Σ_t KL(S ‖ q_λ), by row, of rows whose scores hold hidden states."""
        ...

    def save(self, folder: Path) -> None:
        """Writes weights and optimizer state."""
        ...

    def load(self, folder: Path, updates: int) -> None:
        """Takes up what `save` wrote."""
        ...

    def export(self, folder: Path) -> None:
        """Writes the student's weights and configuration as Hugging Face has them; when training is over."""
        ...


class Roles(ABC):
    """Those who carry a recipe out.

    `scorer` is None where no frozen model takes part: SFT, and GRPO without a KL. `apart`: the sampler has weights of
    its own, brought up to date by `publish` and `adopt`. `profiler` is there when asked for. `held` is what they
    take of a cluster.
    """

    sampler: Sampler
    scorer: Scorer | None
    learner: Learner
    apart: bool = True
    profiler: Profiler | None = None
    held: Plan | None = None

    @abstractmethod
    def publish(self, version: int) -> None:
        """Makes the learner's present weights, those after step `version`, ready for the sampler."""

    @abstractmethod
    def adopt(self) -> int:
        """Gives the sampler the weights that were last made ready; returns their version."""

    @abstractmethod
    def offer(self) -> None:
        """Lets engines take newer weights in the middle of what they are sampling, if there are any and they can."""

    @abstractmethod
    def call_off(self) -> None:
        """The sampler and the scorer will not be used again: a thread that waits for them gets CalledOff."""

    @abstractmethod
    def check_folder(self, folder: Path) -> None:
        """BadInput when a run folder is not there for all who write to it."""

    @abstractmethod
    def close(self) -> None:
        """Ends what was started for the roles."""
