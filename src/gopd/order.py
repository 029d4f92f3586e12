"""Which prompts each step takes: a function of (seed, step) and nothing else, so that a resume needs no memory."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from gopd.errors import BadInput


class PromptOrder:
    """Which prompts each step takes: a function of its arguments and the step, so resuming needs no state.

    The order is an endless concatenation of epochs, each a permutation of all `count` prompts drawn from
    Philox keyed by (seed, epoch); nothing is dropped, so a step may straddle two epochs. No step holds a
    prompt twice: where an epoch would begin with prompts that the straddling step already has, those are
    moved to just behind that step. Without `shuffle` every epoch is in file order.

    Raises BadInput when `count < per_step`: a step would have to hold a prompt twice.
    """

    def __init__(self, count: int, per_step: int, shuffle: bool, seed: int) -> None:
        if count < per_step:
            raise BadInput(
                f"train.prompts_per_step is {per_step}, but there are only {count} prompts, and no step may "
                f"hold a prompt twice; lower it to at most {count}, or give more rows"
            )
        self.count, self.per_step, self.shuffle, self.seed = count, per_step, shuffle, seed
        self._begin()

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every prompt has been taken once, rounded up."""
        return self.steps(1)

    def steps(self, epochs: int) -> int:
        """Steps until every prompt has been taken `epochs` times, rounded up once, at the end."""
        return -(-epochs * self.count // self.per_step)

    def indices(self, step: int) -> list[int]:
        """The `per_step` different prompts of a step, counted from 0."""
        taken: list[int] = []
        while len(taken) < self.per_step:
            epoch, start = divmod(step * self.per_step + len(taken), self.count)
            taken += self._epoch(epoch)[start : start + self.per_step - len(taken)].tolist()
        return taken

    def _begin(self) -> None:
        self._last, self._newest = -1, deque[NDArray[np.int64]](maxlen=2)

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        """Each begins as the one before it ends; the newest two are kept, which a step may straddle."""
        if epoch < self._last - 1:
            self._begin()
        while self._last < epoch:
            self._last += 1
            order = self._permutation(self._last)
            before = self._last * self.count % self.per_step
            if before:  # so many rows of the last epoch share a step with the first rows of this one
                fresh = np.flatnonzero(np.isin(order, self._newest[-1][-before:], invert=True))
                first = fresh[: self.per_step - before]
                order = np.concatenate([order[first], np.delete(order, first)])
            self._newest.append(order)
        return self._newest[epoch - self._last - 1]

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(self.count)
        key = np.array([self.seed, epoch], dtype=np.uint64)
        return np.random.Generator(np.random.Philox(key=key)).permutation(self.count)
