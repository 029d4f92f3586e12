"""Grading: alongside sampling, and anew from saved samples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gopd import sandbox
from gopd.console import Display
from gopd.errors import BadInput
from gopd.evaluate.figures import Figures, figures
from gopd.evaluate.problem import Problem, Reading
from gopd.evaluate.results import Key, Record, TaskResults, complete, task_folders, write_summary
from gopd.evaluate.show import table
from gopd.evaluate.tasks import TASKS, Task, load


class Grader:
    """Grades in threads of its own: programs run side by side, one for each CPU; mathematics has one process anyway."""

    def __init__(self, results: TaskResults, problems: dict[str, Problem]) -> None:
        self.results, self.problems = results, problems
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count())
        self._running: list[Future[None]] = []

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        """What is not begun stays ungraded."""
        self._pool.shutdown(cancel_futures=True)

    def submit(self, keys: Iterable[Key]) -> None:
        """Grades these when there is time."""
        for key in keys:
            self._running.append(self._pool.submit(self._grade, key))

    def wait(self, display: Display, name: str) -> None:
        """Until all are graded. Raises what a grader raised."""
        with display.phase(name, len(self._running)) as bar:
            for done, one in enumerate(self._running, 1):
                one.result()
                bar.rows(done)

    def _grade(self, key: Key) -> None:
        verdict = self.problems[key[0]].judge(self.results.records[key]["response"])
        self.results.graded(key, verdict)


def grade_again(folder: Path, reading: Reading, data: Path | None, display: Display | None = None) -> None:
    """Grades all samples in a results folder anew; nothing is sampled. An interrupted run goes on where it was."""
    display = display or Display()
    found = [TaskResults(path) for path in task_folders(folder)]
    tasks = [TASKS[results.settings["task"]] for results in found]
    problems = load_all(list(dict.fromkeys(tasks)), reading, data, display)
    for results, task in zip(found, tasks, strict=True):
        known = {problem.id for problem in problems[task.name]}
        if unknown := next((problem for problem, _ in results.records if problem not in known), None):
            raise BadInput(
                f"{results.folder}: problem {unknown!r} is not in the task's data; give those it was sampled with"
            )
    rows: dict[tuple[str, str], Figures] = {}
    for results, task in zip(found, tasks, strict=True):
        graded = _graded_again(results, task, problems[task.name], reading, display)
        home = results.folder.parent
        write_summary(home, results.settings["model"], {name: row.entry() for name, row in graded.items()})
        rows |= {(home.name, name): row for name, row in graded.items()}
    display.console.print(table(rows))


def _graded_again(
    results: TaskResults, task: Task, problems: Sequence[Problem], reading: Reading, display: Display
) -> dict[str, Figures]:
    wanted = grading_settings(task, reading)
    if results.settings["grading"] != wanted or complete(list(results.records.values())):
        results.ungrade(wanted)
    by_id = {problem.id: problem for problem in problems}
    with Grader(results, by_id) as grader:
        grader.submit(key for key in results.records if "reason" not in results.records[key])
        grader.wait(display, f"{results.folder.parent.name}: grading {task.name}")
    results.close(list(by_id))
    grouped: dict[str, list[Record]] = {}
    for (problem, _), record in results.records.items():
        grouped.setdefault(problem, []).append(record)
    return rows_of(task, list(grouped.values()), ())


def load_all(
    tasks: Sequence[Task], reading: Reading, data: Path | None, display: Display
) -> dict[str, list[Problem]]:
    """All problems of all tasks. Raises BadInput when they cannot be had, or their programs not be run."""
    if any(task.domain == "code" for task in tasks):
        sandbox.isolation()
    found = {}
    with display.run(len(tasks), 0, "suites"):
        for task in tasks:
            with display.phase(f"{task.name}: reading", 1) as bar:
                found[task.name] = load(task, data, reading, bar.of)
            display.advance()
    return found


def grading_settings(task: Task, reading: Reading) -> dict[str, Any]:
    """With what is graded: rules that change verdicts."""
    found: dict[str, Any] = {"golds": reading.golds}
    if task.domain == "code":
        found = {"sandbox": sandbox.isolation()}
    if task.name.startswith("livecodebench"):
        found["rules"] = "reference" if reading.lcb_compat else "gopd"
    return found


def rows_of(task: Task, records: Sequence[Sequence[Record]], pass_at: Sequence[int]) -> dict[str, Figures]:
    """A suite's figures; where it has base tests, theirs come first, under its name without the plus."""
    found = {task.name: figures(records, task.domain, pass_at)}
    if task.name.endswith("+"):
        base = figures(records, task.domain, pass_at, lambda record: bool(record["base"]))
        found = {task.name.removesuffix("+"): base} | found
    return found
