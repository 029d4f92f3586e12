"""The ranks that share the student, as one learner. When one of them is lost, so is what all were doing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from gopd.cluster.watch import HEALTH, Member, Watch, value
from gopd.errors import Lost
from gopd.guard import NONE, Bounds
from gopd.learner import NonFinite, Update
from gopd.roles import Done, silent
from gopd.sharding import first_known
from gopd.types import Rollout, Scores, TokenTerms

DEATH_SECONDS = 1.0
"""How long Ray may take to learn of a death."""


class LearnerGroup:
    """Ranks that have met (`LearnerRank.join`)."""

    def __init__(self, members: Sequence[Member], watch: Watch) -> None:
        self.members, self.watch = members, watch
        self.updates = 0

    def update(
        self,
        rollouts: Sequence[Rollout],
        scores: Sequence[Scores | None],
        terms: Sequence[TokenTerms | None],
        done: Done = silent,
        bounds: Bounds = NONE,
    ) -> Update:
        """One optimizer step on the whole of `rollouts`; refused by all ranks or by none."""
        updates = self._all(lambda rank, *batch: rank.update.remote(*batch, bounds), rollouts, scores, terms)
        done(len(rollouts))
        first: Update = updates[0]
        assert all((update.refused is None) == (first.refused is None) for update in updates)
        self.updates += first.refused is None
        return replace(first, reports=first_known([update.reports for update in updates]))

    def logprobs(self, rollouts: Sequence[Rollout]) -> dict[int, Tensor]:
        """The present weights' log-probs of every response, by row."""
        parts = self._all(lambda rank, batch: rank.logprobs.remote(batch), rollouts)
        return {row: found for part in parts for row, found in part.items()}

    def kl_to_target(
        self, rollouts: Sequence[Rollout], scores: Sequence[Scores | None], temperature: float
    ) -> dict[int, float]:
        """Σ_t KL(S ‖ q_λ), by row, of rows whose scores hold hidden states."""
        parts = self._all(
            lambda rank, *batch: rank.kl_to_target.remote(*batch, temperature), rollouts, scores
        )
        return {row: found for part in parts for row, found in part.items()}

    def _all(self, call: Callable[..., Any], *batch: Any) -> list[Any]:
        """Every rank's answer to a call with the same batch, which travels to each node once.

        A loss or gradient that is not finite is found by all ranks, each naming its own rows. Where a rank is lost, the
        others fail too, and whoever is heard first: then it is Lost that is raised.
        """
        references = [ray.put(part) for part in batch]
        return self._answers({call(member.handle, *references): member for member in self.members})

    def _answers(self, calls: Mapping[Any, Member]) -> list[Any]:
        found, spoiled = dict[str, Any](), list[NonFinite]()
        for reference, member in self.watch.each(calls):
            try:
                found[member.name] = value(reference, member)
            except NonFinite as error:
                spoiled.append(error)
            except Lost:
                raise
            except RuntimeError:
                self._check_all_live()
                raise
        if spoiled:
            telling = next((error for error in spoiled if error.rows), spoiled[0])
            raise NonFinite(str(telling), sorted({row for error in spoiled for row in error.rows}))
        return [found[member.name] for member in self.members]

    def _check_all_live(self) -> None:
        """Raises Lost when a rank is not there any more; a death is known a little after what it causes."""
        time.sleep(DEATH_SECONDS)
        self.watch.all(self.members, lambda rank: rank.ping.options(concurrency_group=HEALTH).remote())

    def weights(self, dtype: torch.dtype) -> list[Any]:
        """References to pieces of the present weights, in the object store."""
        streams = [m.handle.weights.options(num_returns="streaming").remote(dtype) for m in self.members]
        ends = {stream.completed(): member for stream, member in zip(streams, self.members, strict=True)}
        self._answers(ends)
        return list(streams[0])

    def see(self, folder: Path) -> bool:
        """Whether all ranks have a folder before them."""
        return all(self._all(lambda rank: rank.sees.remote(folder.absolute())))

    def save(self, folder: Path) -> None:
        """Every rank writes its part."""
        with self._silent():
            self._all(lambda rank: rank.save.remote(folder.absolute()))

    def load(self, folder: Path, updates: int) -> None:
        """Every rank takes up its part."""
        with self._silent():
            self._all(lambda rank: rank.restore.remote(folder.absolute(), updates))
        self.updates = updates

    def export(self, folder: Path) -> None:
        """The first rank writes the student's weights and configuration."""
        with self._silent():
            self._all(lambda rank: rank.export.remote(folder.absolute()))

    @contextmanager
    def _silent(self) -> Iterator[None]:
        """Inside, no heartbeat is asked for: a whole part that is turned into bytes keeps a process from answering."""
        for member in self.members:
            member.silent = True
        try:
            yield
        finally:
            for member in self.members:
                member.silent = False
