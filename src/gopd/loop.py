"""The loop: sample, score, update, validate, save. Everything else is in the roles it drives."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gopd.attempt import Attempt, Found, set_up
from gopd.card import student_card
from gopd.checkpoint import RunFolder
from gopd.collect import VALIDATION, AheadCollector, Collected, Collector
from gopd.console import Display
from gopd.errors import Interrupted, Lost, RunFailed
from gopd.export import export_student
from gopd.files import atomic_write, file_name
from gopd.guard import Guard, Row, furthest, row_entry
from gopd.interrupt import Stop, finish_step_on_interrupt
from gopd.learner import NonFinite, Update
from gopd.methods.batch import Batch
from gopd.metrics import Clock, gap_metrics, step_metrics
from gopd.recipe import AnyRecipe, SampledRecipe
from gopd.roles import Roles
from gopd.rollouts import grade, sample_rollouts
from gopd.setup import Task
from gopd.tracking import (
    Metrics,
    Trackers,
    read_metrics,
    rewind_rollouts,
    rollouts_file,
    write_rollouts,
)
from gopd.types import Rollout, TokenReport
from gopd.validate import Validation, exact_kl, silent_domains, summarize

GO_ON = "go on with --resume"


def train(
    recipe: AnyRecipe, *, resume: bool = False, cluster: str | None = None, display: Display | None = None
) -> Path:
    """Runs a recipe and returns its run folder; the trained student is in `student/` inside.

    With `cluster` the roles are actors on Ray: on this machine (`local`), on the cluster this runs in (`auto`), or on
    the one at an address. Otherwise everything happens in this process.

    Raises BadInput before any work when the recipe cannot run, RunFailed when it cannot go on, and Interrupted
    after Ctrl-C, when the current step is finished and saved.
    """
    display = display or Display()
    with closing(RunFolder.open(recipe, resume=resume)) as run:
        if run.student.exists():  # it is written last
            display.say(f"this run is finished; its student is in {run.student}")
            return run.path
        attempt = Attempt(cluster)
        for restart in range(recipe.cluster.max_restarts + 1):
            try:
                _run_once(recipe, run, display, attempt)
                break
            except Lost as error:
                if attempt.stop.requested:
                    raise Interrupted(f"stopped, without the step under way: {error}; {GO_ON}") from error
                if restart == recipe.cluster.max_restarts:
                    raise
                run.resumed = True
                display.say(f"warning: {error}; starting again from the last checkpoint")
    return run.path


def _run_once(recipe: AnyRecipe, run: RunFolder, display: Display, attempt: Attempt) -> None:
    """From the last checkpoint, if there is one, to the end. Raises Lost when a process of a cluster is lost."""
    found, task, roles, trackers = set_up(recipe, run, attempt)
    attempt.needed = roles.held
    with closing(roles), closing(trackers), finish_step_on_interrupt(display, attempt.stop):
        Job(recipe, run, display, task, roles, trackers).run(found, attempt.stop)


@dataclass
class Job:
    """A recipe, its run folder, and the roles that carry it out."""

    recipe: AnyRecipe
    run_folder: RunFolder
    display: Display
    task: Task
    roles: Roles
    trackers: Trackers
    best: tuple[int, float] | None = None
    guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        self.guard = Guard(self.recipe.guard)

    def run(self, found: Found | None, stop: Stop) -> None:
        """From the start, or from the checkpoint found, to the last step."""
        first = self._take_up(found)
        metrics = Metrics(self.run_folder.metrics)
        self.display.recall(read_metrics(self.run_folder.metrics))
        if first == 0:
            self.display.say(f"{self.task.total_steps} steps; the run folder is {self.run_folder.path}")
        with self.display.run(self.task.total_steps, first):
            if first == 0 and self.recipe.validation is not None and self.recipe.validation.before_training:
                self._validate(0)
            with closing(self._collector(first + 1)) as batches:
                for step in range(first + 1, self.task.total_steps + 1):
                    started = time.perf_counter()
                    got = batches.take(step)
                    batch = Batch.of(
                        self.recipe, got.rollouts, got.scores, exact=self._exact(step, got.version)
                    )
                    before = self.roles.learner.updates
                    updates, reports = self._update(step, batch, got.clock)
                    skipped = len(batch.parts()) - (self.roles.learner.updates - before)
                    if self.roles.apart:
                        with got.clock.phase("sync"):
                            self.roles.publish(step)
                        batches.published(step)
                    figures = step_metrics(batch, updates, got.staleness(step)) | got.clock.metrics()
                    if not batch.exact:
                        figures |= gap_metrics(got.rollouts, reports)
                    if self.recipe.guard.action == "skip":
                        figures["skipped"] = skipped
                    metrics.append({"step": step, **figures})
                    self.trackers.log(step, figures)
                    self._keep_rollouts(step, got, reports)
                    self.display.step(step, self.task.total_steps, figures, time.perf_counter() - started)
                    if self.roles.profiler is not None:
                        self.roles.profiler.step(batch, got.clock)
                    self._validate_and_save(step, stop, batches)
        self._finish()

    def _collector(self, first: int) -> Collector:
        kind = AheadCollector if self.recipe.train.max_staleness else Collector
        return kind(self.recipe, self.task, self.roles, self.display, first)

    def _exact(self, step: int, version: int) -> bool:
        """Whether the sampler's log-probs are those of the weights that the step begins with."""
        return self.roles.sampler.exact and version == step - 1

    def _update(self, step: int, batch: Batch, clock: Clock) -> tuple[list[Update], list[TokenReport | None]]:
        """The step's optimizer steps, those after the first off-policy, and each rollout's first report.

        One whose numbers are not finite is missing, if the guard lets the run go on.
        """
        learner, parts, updates = self.roles.learner, batch.parts(), list[Update]()
        reports: list[TokenReport | None] = [None] * len(batch.rollouts)
        with clock.phase("update"), self.display.phase("updating", sum(map(len, parts))) as bar:
            old, before, first = batch.old_logprobs(learner.logprobs), 0, learner.updates
            for part in parts:
                rollouts, scores = [batch.rollouts[i] for i in part], [batch.scores[i] for i in part]
                terms = batch.terms(part, old if learner.updates > first else None)
                progress = partial(bar.rows, before=before)
                before += len(part)
                try:
                    update = learner.update(rollouts, scores, terms, progress, self.guard.bounds())
                except NonFinite as error:
                    self._refuse(step, str(error), [(rollouts[i], None) for i in error.rows])
                    continue
                if update.refused is not None:
                    self._refuse(step, update.refused, furthest(rollouts, update.reports))
                elif any(update.reports):
                    self.guard.made(update.loss, update.grad_norm)
                updates.append(update)
                for i, report in zip(part, update.reports, strict=True):
                    reports[i] = reports[i] or report
        learned = [batch.rollouts[i] for part in parts for i in part if batch.teaches(i)]
        clock.tokens["update"] = sum(len(r.response_ids) for r in learned)
        return updates, reports

    def _validate_and_save(self, step: int, stop: Stop, batches: Collector) -> None:
        last, section, best = step == self.task.total_steps, self.recipe.validation, self.best
        if section is not None and (last or (section.every and step % section.every == 0)):
            with batches.paused():
                self._validate(step)
        every = self.recipe.checkpoint.every
        new_best = self.recipe.checkpoint.keep_best and self.best != best
        if last or stop.requested or new_best or (every and step % every == 0):
            best_step, best_score = self.best or (None, None)
            state = {
                "updates": self.roles.learner.updates,
                "best_step": best_step,
                "best_score": best_score,
                "guard": self.guard.state(),
            }
            self.run_folder.save(step, self.roles.learner.save, state)
        if stop.requested and not last:
            self._show_profile()
            raise Interrupted(f"stopped after step {step} of {self.task.total_steps}; {GO_ON}")

    def _validate(self, step: int) -> None:
        """Measures the student, and before training the teachers if the recipe asks for it."""
        section, data, recipe = self.recipe.validation, self.task.validation, self.recipe
        assert section is not None and data is not None
        limit = recipe.validation_response_tokens
        models = [("student", self.roles.sampler, data)]
        if step == 0 and self.roles.scorer is not None:
            for name, seen in self.task.seen_by.items():
                models.append((f"teacher {name}", self.roles.scorer.sampler(name), seen))
        for name, sampler, prompts in models:
            with self.display.phase(f"validating {name}", len(prompts) * section.samples_per_prompt) as bar:
                rollouts = sample_rollouts(
                    sampler,
                    self.task.tokenizer,
                    prompts,
                    section.sampling,
                    samples=section.samples_per_prompt,
                    max_response_tokens=limit,
                    stream=(recipe.train.seed, VALIDATION),
                    progress=bar.sampled,
                )
                grade(rollouts)
                kls: list[float | None] = [None] * len(rollouts)
                if name == "student" and self.roles.scorer is not None:
                    temperature, budget = section.sampling.temperature, recipe.train.tokens_per_micro_batch
                    turns = isinstance(recipe, SampledRecipe) and recipe.scoring.memory_gb is not None
                    roles = (self.roles.learner, self.roles.scorer)
                    kls = exact_kl(*roles, rollouts, temperature, budget, by_route=turns)
            self._record_validation(summarize(step, name, rollouts, kls), rollouts)

    def _record_validation(self, result: Validation, rollouts: Sequence[Rollout]) -> None:
        Metrics(self.run_folder.validation).append(result.entry())
        kept = rollouts[: self.recipe.tracking.rollouts_limit]
        folder = self.run_folder.validation_rollouts / file_name(result.model.replace(" ", "-", 1))
        write_rollouts(
            rollouts_file(folder, result.step), result.step, kept, [None] * len(kept), self._token_names
        )
        self.display.validation(result)
        for rollout in rollouts[: self.recipe.tracking.show_generations]:
            self.display.say(f"--- {rollout.prompt.where} (reward {rollout.reward})\n{rollout.text}")
        if result.model != "student":
            return
        if result.step == 0 and isinstance(self.recipe, SampledRecipe):
            for domain in silent_domains(self.recipe, rollouts):
                self.display.say(
                    f"warning: {domain}: not one response was right before training, and where all responses to a "
                    "prompt are wrong there is nothing to learn; use easier prompts, or a better student"
                )
        if result.step and (self.best is None or result.score() > self.best[1]):
            self.best = (result.step, result.score())
        flat = {
            f"validation/{domain}/{name}": value
            for domain, figures in result.entry()["domains"].items()
            for name, value in figures.items()
            if value is not None
        }
        self.trackers.log(result.step, flat)

    def _keep_rollouts(self, step: int, got: Collected, reports: list[TokenReport | None]) -> None:
        tracking = self.recipe.tracking
        if (
            not tracking.rollouts_every
            or step % tracking.rollouts_every
            or self.task.demonstrations is not None
        ):
            return
        limit = tracking.rollouts_limit
        write_rollouts(
            rollouts_file(self.run_folder.rollouts, step),
            step,
            got.rollouts[:limit],
            reports[:limit],
            self._token_names,
            versions=[got.versions(rollout) for rollout in got.rollouts[:limit]],
        )

    def _token_names(self, ids: list[int]) -> list[str]:
        return list(self.task.tokenizer.convert_ids_to_tokens(ids))

    def _take_up(self, found: Found | None) -> int:
        """Puts everything back to the checkpoint found; returns its step, 0 without one."""
        for warning in self.run_folder.warnings:
            self.display.say(f"warning: {warning}")
        step = 0
        if found is not None:
            step, folder, state = found
            self.roles.learner.load(folder, state["updates"])
            if self.roles.apart:
                self.roles.publish(step)
            if "guard" in state:  # checkpoints of earlier versions have none
                self.guard.take_up(state["guard"])
            if state["best_step"] is not None:
                self.best = (state["best_step"], state["best_score"])
            self.run_folder.prune(step, state["best_step"])
            self.display.say(f"resuming after step {step} of {self.task.total_steps}")
        for path in (self.run_folder.metrics, self.run_folder.validation, self.run_folder.skipped):
            Metrics(path).rewind(step if found else -1)
        for folder in (self.run_folder.rollouts, *self.run_folder.validation_rollouts.glob("*")):
            rewind_rollouts(folder, step if found else -1)
        return step

    def _finish(self) -> None:
        results = [Validation.from_entry(e) for e in read_metrics(self.run_folder.validation)]
        students = [r for r in results if r.model == "student"]
        last = students[-1] if students else None
        card = student_card(self.recipe, self.task.total_steps, last)
        export_student(self.roles.learner, self.task.tokenizer, card, self.run_folder.student)
        if last is not None:
            rows = [("student before", s) for s in students[:1] if s.step == 0]
            rows += [(r.model, r) for r in results if r.model != "student"]
            self.display.table([*rows, ("student after", last)])
        else:
            self.display.say("no validation was asked for; `gopd eval` measures the student")
        self._show_profile()
        self.display.say(f"run folder: {self.run_folder.path}")

    def _show_profile(self) -> None:
        if self.roles.profiler is not None:
            atomic_write(self.run_folder.profile, json.dumps(self.roles.profiler.entry(), indent=1) + "\n")
            self.display.profile(self.roles.profiler.phases(), self.roles.profiler.limits)

    def _refuse(self, step: int, reason: str, rows: Sequence[Row]) -> None:
        """Goes on without an optimizer step, its first rows noted; or raises RunFailed."""
        entries = [row_entry(*row) for row in rows[: self.recipe.tracking.rollouts_limit]]
        if self.guard.skips():
            self.display.say(f"warning: step {step}: an optimizer step was skipped: {reason}")
            Metrics(self.run_folder.skipped).append({"step": step, "reason": reason, "rows": entries})
            return
        path = self.run_folder.path / f"failure-step-{step:08d}.jsonl"
        atomic_write(path, "".join(json.dumps(entry) + "\n" for entry in entries))
        raise RunFailed(
            f"{reason}; training stopped at step {step}, and every checkpoint saved before is intact; "
            f"{self.guard.mend()}; rows involved: {path}"
        )
