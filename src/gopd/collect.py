"""Batches for the learner: sampled, graded and scored, one after the other or ahead of the learner."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gopd.console import Display
from gopd.errors import CalledOff
from gopd.methods import opd
from gopd.metrics import Clock
from gopd.recipe import AnyRecipe, OpdRecipe, SampledRecipe
from gopd.roles import Roles, Scoring
from gopd.rollouts import grade, sample_rollouts
from gopd.setup import Task
from gopd.types import Rollout, Scores

TRAINING, VALIDATION = 0, 1
"""First numbers of random streams, so that training and validation never share one."""


@dataclass(frozen=True)
class Collected:
    """What one step learns from. `version` is the step after which the weights that began to sample it were taken."""

    rollouts: list[Rollout]
    scores: Sequence[Scores | None]
    version: int
    clock: Clock

    def versions(self, rollout: Rollout) -> list[tuple[int, int]]:
        """A rollout's stretches as (tokens, step after which the weights that sampled them were taken)."""
        changes = rollout.versions or [(0, self.version)]
        ends = [*(first for first, _ in changes[1:]), len(rollout.response_ids)]
        return [(end - first, version) for (first, version), end in zip(changes, ends, strict=True)]

    def staleness(self, step: int) -> float:
        """How many steps older than those that `step` begins with the sampling weights were; mean over tokens."""
        stretches = [stretch for rollout in self.rollouts for stretch in self.versions(rollout)]
        tokens = sum(tokens for tokens, _ in stretches)
        return step - 1 - sum(tokens * version for tokens, version in stretches) / tokens


class Collector:
    """Collects the batches of steps `first` to the last, each when it is asked for."""

    def __init__(self, recipe: AnyRecipe, task: Task, roles: Roles, display: Display, first: int) -> None:
        self.recipe, self.task, self.roles, self.display = recipe, task, roles, display
        self.version = first - 1

    def take(self, step: int) -> Collected:
        """The batch of a step; steps must be asked for in order."""
        return self.collect(step)

    def published(self, step: int) -> None:
        """The learner has laid out its weights after a step."""

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing is sampled but by the caller, and with the newest weights."""
        self.adopt(Clock())
        yield

    def close(self) -> None:
        """Ends what is under way."""

    def adopt(self, clock: Clock) -> None:
        """Brings the sampler up to the newest weights that are laid out."""
        if self.roles.apart:
            with clock.phase("sync"):
                self.version = self.roles.adopt()

    def collect(self, step: int) -> Collected:
        """The step's rollouts, graded, with their scores; for SFT, demonstrations without."""
        clock = Clock(memory_by_phase=self.roles.profiler is not None)
        indices = self.task.order.indices(step - 1)
        if self.task.demonstrations is not None:
            chosen = [self.task.demonstrations[i] for i in indices]
            return Collected(chosen, [None] * len(chosen), step - 1, clock)
        self.adopt(clock)
        version = self.version if self.roles.apart else step - 1
        rollouts, scoring = self._sample(step, indices, clock)
        with clock.phase("verify"):
            grade(rollouts)
        clock.tokens["sample"] = sum(len(r.response_ids) for r in rollouts)
        if scoring is None:
            return Collected(rollouts, [None] * len(rollouts), version, clock)
        with clock.phase("score"), self.display.phase("scoring", len(rollouts)) as bar:
            scores = scoring.scores(rollouts, bar.rows)
        scored = zip(rollouts, scores, strict=True)
        clock.tokens["score"] = sum(len(r.response_ids) for r, score in scored if score is not None)
        return Collected(rollouts, scores, version, clock)

    def _sample(
        self, step: int, indices: Sequence[int], clock: Clock
    ) -> tuple[list[Rollout], Scoring | None]:
        """The step's rollouts, and their scoring, which has been given each of them when it was finished."""
        recipe, scorer, batch = self.recipe, self.roles.scorer, self.task.data.part(indices)
        assert isinstance(recipe, SampledRecipe)
        hidden = isinstance(recipe, OpdRecipe) and opd.needs_vocabulary(recipe.objective)
        temperature, samples = recipe.sampler.temperature, recipe.sampler.samples_per_prompt
        scoring = None
        if scorer is not None:
            routes = [prompt.route for prompt in batch.prompts for _ in range(samples)]
            scoring = scorer.begin(routes, temperature=temperature, keep_hidden=hidden)
        with clock.phase("sample"), self.display.phase("sampling", len(batch) * samples) as bar:

            def progress(done: int, total: int, tokens: int) -> None:
                self.meanwhile()
                bar.sampled(done, total, tokens)

            rollouts = sample_rollouts(
                self.roles.sampler,
                self.task.tokenizer,
                batch,
                recipe.sampler,
                samples=samples,
                max_response_tokens=recipe.data.max_response_tokens,
                stream=(recipe.train.seed, TRAINING, step),
                progress=progress,
                finished=None if scoring is None else scoring.add,
            )
        return rollouts, scoring

    def meanwhile(self) -> None:
        """Called while a batch is sampled; may raise to give it up."""


class AheadCollector(Collector):
    """Collects in a thread, ahead of the learner.

    A batch is sampled by the newest weights there are when it is begun, at most `train.max_staleness` steps older than
    those it updates, and with `in_flight_updates` by newer ones as they come. What the thread raises, `take` raises.
    """

    def __init__(self, recipe: AnyRecipe, task: Task, roles: Roles, display: Display, first: int) -> None:
        super().__init__(recipe, task, roles, display, first)
        self._newest, self._next = first - 1, first
        self._in_flight = isinstance(recipe, SampledRecipe) and recipe.sampler.vllm.in_flight_updates
        self._batches: dict[int, Collected] = {}
        self._error: BaseException | None = None
        self._closed = False
        self._change = threading.Condition()
        self._sampling = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="collector", daemon=True)
        self._thread.start()

    def take(self, step: int) -> Collected:
        """The batch of a step, when it is complete."""
        with self._change:
            self._change.wait_for(lambda: step in self._batches or self._error is not None)
            if step not in self._batches:
                assert self._error is not None
                raise self._error
            return self._batches.pop(step)

    def published(self, step: int) -> None:
        """The learner has laid out its weights after a step: the thread may go on."""
        with self._change:
            self._newest = step
            self._change.notify_all()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Waits for the batch under way; the next one is not begun before the end."""
        with self._sampling, super().paused():
            yield

    def close(self) -> None:
        """Gives up the batch under way, whatever is being waited for, and waits for the thread."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self.roles.call_off()
        self._thread.join()

    def meanwhile(self) -> None:
        """Tells engines of newer weights, where they can take them in flight; raises when closed."""
        self._still_wanted()
        if self._in_flight:
            self.roles.offer()

    def _still_wanted(self) -> None:
        if self._closed:
            raise CalledOff

    def _work(self) -> None:
        try:
            for step in range(self._next, self.task.total_steps + 1):
                with self._change:
                    oldest = step - 1 - self.recipe.train.max_staleness
                    self._change.wait_for(lambda oldest=oldest: self._closed or self._newest >= oldest)  # type: ignore[misc]
                self._still_wanted()
                with self._sampling:
                    batch = self.collect(step)
                with self._change:
                    self._batches[step] = batch
                    self._change.notify_all()
        except CalledOff:
            pass
        except BaseException as error:  # for `take`, whatever it is
            with self._change:
                self._error = error
                self._change.notify_all()
