"""Which optimizer steps are not made: spikes and KL explosions, judged against the steps before (`guard` in a recipe).

The loop keeps the history and sets bounds; the learner, whose ranks all get the same bounds and compare the same
totals with them, leaves its weights alone where one is passed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gopd.run_sections import GuardSection
from gopd.types import Rollout, TokenReport

if TYPE_CHECKING:
    from torch import Tensor

WINDOW = 32
"""Optimizer steps whose median loss and gradient norm the next ones are held against."""
FEWEST = 8
"""With fewer of them there is no median to speak of, and nothing is held against it."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest loss, norm of the gradient before clipping, and mean KL (nats per token) that make a step."""

    loss: float = math.inf
    grad_norm: float = math.inf
    kl: float = math.inf

    @property
    def measures_kl(self) -> bool:
        """Whether the mean KL must be known."""
        return self.kl < math.inf

    def passed(self, loss: float, grad_norm: float, kl: float) -> str | None:
        """What is out of bounds, in words; None where nothing is. A KL that is not a number is out of any bounds."""
        figures = (
            ("loss", loss, self.loss, ""),
            ("gradient norm", grad_norm, self.grad_norm, ""),
            ("mean KL", kl, self.kl, " nats per token"),
        )
        found = [f"the {n} is {v:.4g}{unit}, above {b:.4g}" for n, v, b, unit in figures if not v <= b]
        return " and ".join(found) or None


NONE = Bounds()
"""Nothing is out of bounds."""


@dataclass
class Guard:
    """The running statistics of a run's optimizer steps; part of its checkpoints, so that a resume judges alike."""

    section: GuardSection
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped: int = 0
    """Optimizer steps skipped in a row."""

    def bounds(self) -> Bounds:
        """Of the next optimizer step."""
        limit = self.section.kl
        return Bounds(
            _multiple(self.section.loss, self.losses),
            _multiple(self.section.grad_norm, self.norms),
            math.inf if limit is None else limit,
        )

    def made(self, loss: float, grad_norm: float) -> None:
        """An optimizer step was made, from rows that had something to teach."""
        self.losses = [*self.losses, loss][-WINDOW:]
        self.norms = [*self.norms, grad_norm][-WINDOW:]
        self.skipped = 0

    def skips(self) -> bool:
        """An optimizer step was refused: whether the run goes on without it."""
        self.skipped += 1
        return self.section.action == "skip" and self.skipped <= self.section.patience

    def mend(self) -> str:
        """What may be done about a run that is stopped."""
        if self.section.action == "skip":
            what = f"{self.skipped - 1} optimizer steps before it were skipped (guard.patience)"
            return f"{what}: go back to an earlier checkpoint with a lower optim.lr, or change the guard with --resume"
        return "--resume guard.action=skip goes on from there and leaves such batches out"

    def state(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"losses": self.losses, "norms": self.norms, "skipped": self.skipped}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave."""
        self.losses, self.norms = list(state["losses"]), list(state["norms"])
        self.skipped = state["skipped"]


def _multiple(factor: float | None, values: Sequence[float]) -> float:
    if factor is None or len(values) < FEWEST:
        return math.inf
    return factor * statistics.median(values) or math.inf  # nothing is a multiple of 0


Row = tuple[Rollout, TokenReport | None]


def furthest(rollouts: Sequence[Rollout], reports: Sequence[TokenReport | None]) -> list[Row]:
    """The rows of a refused optimizer step, those with the largest mean KL (else the least likely) first."""

    def size(row: Row) -> float:
        report = row[1]
        if report is None:
            return -math.inf
        kl_R = token_kls(report)
        return float((-report.student_logprobs_R if kl_R is None else kl_R).mean())

    return sorted(zip(rollouts, reports, strict=True), key=size, reverse=True)


def row_entry(rollout: Rollout, report: TokenReport | None) -> dict[str, Any]:
    """A row of a refused optimizer step, as JSON: what it was, and its mean KL and advantage where they are known."""
    return {
        "where": rollout.prompt.where,
        "sample": rollout.sample,
        "route": rollout.prompt.route,
        "kl": None if report is None else _mean(token_kls(report)),
        "advantage": None if report is None else _mean(report.advantage_R),
        "prompt_ids": rollout.prompt_ids,
        "response_ids": rollout.response_ids,
        "response": rollout.text,
    }


def token_kls(report: TokenReport) -> Tensor | None:
    """The KL at every token of a row [R], to the target or, with method grpo, to the reference; None without one."""
    return report.reference_kl_R if report.kl_R is None else report.kl_R


def _mean(values_R: Tensor | None) -> float | None:
    """None as well where it is not finite, as JSON has no such number."""
    mean = math.nan if values_R is None else float(values_R.mean())
    return mean if math.isfinite(mean) else None
