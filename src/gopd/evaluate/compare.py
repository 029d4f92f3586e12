"""Two results on the same problems: the paired difference, with what it can tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gopd.errors import BadInput
from gopd.estimates import Estimate, estimate, proportion
from gopd.evaluate.results import TaskResults, complete, task_folders


@dataclass(frozen=True, slots=True)
class Comparison:
    """B against A on one task. `difference` is B − A in avg@n, its interval over problems, paired.

    `better` and `worse` count problems on which B's share of right samples is above and below A's.
    """

    task: str
    problems: int
    a: Estimate
    b: Estimate
    difference: Estimate
    better: int
    worse: int
    notes: tuple[str, ...]

    @property
    def verdict(self) -> Literal["B better", "A better", "undecided"]:
        """What the interval decides, at 95%."""
        if self.difference.low > 0:
            return "B better"
        return "A better" if self.difference.high < 0 else "undecided"


def compare(a: Path, b: Path) -> list[Comparison]:
    """Every task that both results have. Raises BadInput when there is none, or problems or verdicts are missing."""
    found_a, found_b = _by_task(a), _by_task(b)
    common = [task for task in found_a if task in found_b]
    if not common:
        raise BadInput(f"{a} has {', '.join(found_a)}, {b} has {', '.join(found_b)}: no task in common")
    return [_compared(task, found_a[task], found_b[task]) for task in common]


def _by_task(folder: Path) -> dict[str, TaskResults]:
    results: dict[str, TaskResults] = {}
    for path in task_folders(folder):
        one = TaskResults(path)
        task = one.settings["task"]
        if task in results:
            raise BadInput(
                f"{folder} has results of several models; name one model's folder, as {path.parent}"
            )
        if not complete(list(one.records.values())):
            raise BadInput(f"{path}: not every sample is graded; finish it by gopd eval or gopd grade")
        results[task] = one
    return results


def _compared(task: str, a: TaskResults, b: TaskResults) -> Comparison:
    means_a, means_b = _means(a), _means(b)
    if missing := sorted(means_a.keys() ^ means_b.keys()):
        raise BadInput(
            f"{task}: {len(missing)} problems are in one of the results only, {missing[0]} for one"
        )
    pairs = [(means_a[problem], means_b[problem]) for problem in means_a]
    known_a, known_b = a.settings, b.settings
    notes = [
        f"{name}: A {known_a[name]!r}, B {known_b[name]!r}"
        for name in ("sampling", "prompt", "grading")
        if known_a[name] != known_b[name]
    ]
    return Comparison(
        task=task,
        problems=len(pairs),
        a=proportion([x for x, _ in pairs]),
        b=proportion([y for _, y in pairs]),
        difference=estimate([y - x for x, y in pairs]),
        better=sum(y > x for x, y in pairs),
        worse=sum(y < x for x, y in pairs),
        notes=tuple(notes),
    )


def _means(results: TaskResults) -> dict[str, float]:
    right: dict[str, list[bool]] = {}
    for (problem, _), record in results.records.items():
        right.setdefault(problem, []).append(record["right"])
    return {problem: sum(found) / len(found) for problem, found in right.items()}
