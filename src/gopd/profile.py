"""Where a step's time and memory go: each phase against the least time that this machine needs for its work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from gopd.cost import Limits, ModelCost, Work, measure_limits
from gopd.methods import opd
from gopd.methods.batch import Batch
from gopd.metrics import Clock
from gopd.model import LanguageModel
from gopd.recipe import AnyRecipe, OpdRecipe, SampledRecipe
from gopd.scorer import Scorer
from gopd.types import Rollout

OVERHEAD = 0.5
"""Below this share of the limit, neither products nor memory bind a phase but what lies between them."""


@dataclass(frozen=True, slots=True)
class PhaseProfile:
    """One phase: medians over steps. `limit_seconds` is the least time for its work, None where none is counted.

    `bound`: what binds, `products`, `memory`, or `overhead` when the phase is far from both.
    """

    name: str
    seconds: float
    share: float
    teraflop: float | None
    limit_seconds: float | None
    bound: str | None
    peak_gb: float

    @property
    def of_limit(self) -> float | None:
        """Share of the limit that the phase reaches."""
        return None if self.limit_seconds is None else self.limit_seconds / self.seconds


class Profiler:
    """Adds up steps of a run."""

    def __init__(self, recipe: AnyRecipe, student: LanguageModel, scorer: Scorer | None) -> None:
        self.recipe, self.student, self.scorer = recipe, student, scorer
        self.limits: Limits = measure_limits(student.device)
        self._clocks: list[Clock] = []
        self._works: list[dict[str, Work]] = []

    def step(self, batch: Batch, clock: Clock) -> None:
        """Counts the work of a finished step; rollouts of one prompt stand side by side."""
        recipe, student = self.recipe, ModelCost.of(self.student)
        samples = recipe.sampler.samples_per_prompt if isinstance(recipe, SampledRecipe) else 1
        learned = [batch.rollouts[i] for part in batch.parts() for i in part if batch.teaches(i)]
        works = {"update": student.update(*_lengths(learned), samples=samples)}
        if isinstance(recipe, SampledRecipe):
            slots = recipe.sampler.slots
            works["sample"] = student.sampling(*_lengths(batch.rollouts), samples=samples, slots=slots)
        if self.scorer is not None:
            bodies, heads = scoring_work(self.scorer, batch.rollouts, samples)
            in_update = isinstance(recipe, OpdRecipe) and opd.needs_vocabulary(recipe.objective)
            works["score"] = bodies
            moved = "update" if in_update else "score"
            works[moved] = works[moved] + heads
        self._clocks.append(clock)
        self._works.append(works)

    def phases(self) -> list[PhaseProfile]:
        """Figures per phase, in the order they run; none before the first step."""
        if not self._clocks:
            return []
        total = median(sum(c.seconds.values()) for c in self._clocks)
        return [self._phase(name, total) for name in self._clocks[0].seconds]

    def _phase(self, name: str, total: float) -> PhaseProfile:
        seconds = median(c.seconds[name] for c in self._clocks)
        peak = max(c.peak_gb[name] for c in self._clocks)
        works = [w[name] for w in self._works if name in w]
        if not works:
            return PhaseProfile(name, seconds, seconds / total, None, None, None, peak)
        limit = median(w.seconds(self.limits) for w in works)
        bound = "overhead" if limit < OVERHEAD * seconds else works[-1].bound(self.limits)
        teraflop = median(w.flops for w in works) / 1e12
        return PhaseProfile(name, seconds, seconds / total, teraflop, limit, bound, peak)

    def entry(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        return {
            "limits": asdict(self.limits),
            "steps": len(self._clocks),
            "phases": [asdict(phase) for phase in self.phases()],
        }


def _lengths(rollouts: Sequence[Rollout]) -> tuple[list[int], list[int]]:
    return [len(r.prompt_ids) for r in rollouts], [len(r.response_ids) for r in rollouts]


def scoring_work(scorer: Scorer, rollouts: Sequence[Rollout], samples: int = 1) -> tuple[Work, Work]:
    """What teachers and references here need for rollouts under their own routes: bodies, and heads."""
    bodies, heads = Work(0), Work(0)
    for name, route in scorer.routes.items():
        mine = [r for r in rollouts if r.prompt.route == name]
        responses = [len(r.response_ids) for r in mine]
        for seat in route.local:
            cost = ModelCost.of(seat.model)
            prompts = [len(ids) for ids in scorer.prompt_ids(seat, mine)]
            head = Work(2.0 * sum(responses) * cost.head)
            bodies += cost.forward(prompts, responses, samples=samples) + head.times(-1)
            heads += head
    return bodies, heads
