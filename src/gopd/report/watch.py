"""`gopd watch`: a run followed from outside, through nothing but its folder."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gopd.console import Display
from gopd.report.command import NAME, check_plotting, write_report
from gopd.report.runs import Run, read_runs, total_steps
from gopd.validate import Validation

POLL_SECONDS = 1.0
QUIET_STEPS = 10
"""A run that has finished no step for as long as so many of them take is said to be quiet."""
QUIET_SECONDS = 120.0
"""But not before so long."""

Wait = Callable[[float], None]


def watch(path: Path, display: Display, *, every: float, wait: Wait = time.sleep) -> None:
    """Shows steps and validations as they are finished, until the run is; rewrites its report every so many seconds.

    The folder may be on a disk that another machine writes to. With `every` 0 no report is written. `wait` passes the
    time between looks. Raises BadInput when there is no run.
    """
    if every:
        check_plotting()
    run, seen = _read(path), _state(path)
    watcher = _Watcher(run, display)
    display.say(f"following {path}: {watcher.place(run)}")
    reported = -every
    with display.run(total_steps(run.recipe), run.last_step):
        while True:
            now = time.monotonic()
            stale = reported < watcher.changed
            if every and stale and (run.finished or now - reported >= every):
                write_report([path], path / NAME)
                reported = now
            if run.finished:
                break
            wait(POLL_SECONDS)
            state = _state(path)
            if state != seen:
                run, seen = _read(path), state
                watcher.tell(run)
            else:
                watcher.tell_quiet(run)
    _finish(run, display)
    if every:
        display.say(f"report: {path / NAME}")


class _Watcher:
    """What has been told of a run."""

    def __init__(self, run: Run, display: Display) -> None:
        self.display = display
        self.step, self.validations = run.last_step, len(run.validation)
        self.problems = set[str]()
        self.changed = time.monotonic()
        self._quiet = False
        display.recall(run.metrics)
        self._warn(run)

    def place(self, run: Run) -> str:
        """How far it is."""
        total = total_steps(run.recipe)
        return f"step {run.last_step}" + ("" if total is None else f" of {total}")

    def tell(self, run: Run) -> None:
        """What is new since the last time."""
        self.changed, self._quiet = time.monotonic(), False
        self._warn(run)
        if run.last_step < self.step or len(run.validation) < self.validations:
            self.display.say(f"the run has gone back to its checkpoint: {self.place(run)}")
            self.validations = len(run.validation)
        for entry in run.metrics:
            if entry["step"] > self.step:
                figures = {k: v for k, v in entry.items() if k != "step" and v is not None}
                self.display.step(entry["step"], total_steps(run.recipe), figures, _seconds(entry))
        for result in _validations(run.validation[self.validations :]):
            self.display.validation(result)
        self.step, self.validations = run.last_step, len(run.validation)

    def tell_quiet(self, run: Run) -> None:
        """That nothing has come for long; once."""
        steps = [_seconds(entry) for entry in run.metrics[-QUIET_STEPS:]]
        usual = statistics.median(steps) if steps else 0.0
        silence = time.monotonic() - self.changed
        if not self._quiet and silence > max(QUIET_SECONDS, QUIET_STEPS * usual):
            self._quiet = True
            took = f"; the last ones took {usual:.0f} s each" if steps else ""
            self.display.say(f"warning: no new step for {silence:.0f} s{took}: it may have ended, or hang")

    def _warn(self, run: Run) -> None:
        for problem in run.problems:
            if problem not in self.problems:
                self.problems.add(problem)
                self.display.say(f"warning: {problem}")


def _read(path: Path) -> Run:
    (run,) = read_runs([path])
    return run


def _state(path: Path) -> Sequence[tuple[int, int] | bool]:
    """What changes when there is something new."""
    state: list[tuple[int, int] | bool] = [(path / "student").is_dir()]
    for name in ("metrics.jsonl", "validation.jsonl"):
        file = path / name
        if file.exists():
            found = file.stat()
            state.append((found.st_mtime_ns, found.st_size))
    return state


def _seconds(entry: dict[str, float]) -> float:
    """The time of one step: that of its phases."""
    return sum(value for name, value in entry.items() if name.startswith("seconds/"))


def _validations(entries: Sequence[dict[str, Any]]) -> list[Validation]:
    """Those that this version can read: the run may be another one's."""
    found = []
    for entry in entries:
        with contextlib.suppress(TypeError):
            found.append(Validation.from_entry(entry))
    return found


def _finish(run: Run, display: Display) -> None:
    results = _validations(run.validation)
    students = [result for result in results if result.model == "student"]
    if students:
        others = [(result.model, result) for result in results if result.model != "student"]
        before = [("student before", result) for result in students[:1] if result.step == 0]
        display.table([*before, *others, ("student after", students[-1])])
    display.say(f"this run is finished; its student is in {run.path / 'student'}")
