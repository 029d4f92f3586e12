"""Run folders as the report sees them: what is there is read, what is missing or damaged is named."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gopd.errors import BadInput
from gopd.masking import masked
from gopd.recipe import OpdRecipe, Recipe, SampledRecipe
from gopd.recipe_file import flatten, parse_recipe, read_tree

HOLDS = {
    "recipe.yaml": "the resolved recipe",
    "versions.json": "what it ran with",
    "metrics.jsonl": "a line per step",
    "validation.jsonl": "a line per validation",
    "rollouts": "a folder of Parquet files",
}
"""What a run folder holds; one of them makes a folder a run."""
UNTOLD = ("train.seed", "tracking.")
"""How keys begin in which runs of one group may differ."""


@dataclass
class Run:
    """One run folder. `name` is unique within a report; `problems` is what a reader of the report must know.

    `settings` is the recipe as flat `section.key` → value, empty where there is none; `recipe` is None where this
    version cannot read it. Entries of `metrics` and `validation` are in the order of their steps.
    """

    path: Path
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    recipe: Recipe | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def method(self) -> str:
        """opd, grpo or sft; empty where it is not known."""
        return str(self.settings.get("method", ""))

    @property
    def last_step(self) -> int:
        """The last step with metrics; 0 without any."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def finished(self) -> bool:
        """Whether the trained student was exported, which is the last thing a run does."""
        return (self.path / "student").is_dir()

    def reward_scale(self, route: str | None) -> float | None:
        """λ of a route; None where nothing says it."""
        if not isinstance(self.recipe, OpdRecipe) or route not in self.recipe.teachers:
            return None
        return self.recipe.reward_scale(route)

    def reward_scales(self) -> list[float]:
        """The different λ of a run, in the order of its teachers."""
        teachers = self.recipe.teachers if isinstance(self.recipe, OpdRecipe) else {}
        return list(dict.fromkeys(scale for t in teachers if (scale := self.reward_scale(t)) is not None))

    def kind(self) -> tuple[tuple[str, str], ...]:
        """What is equal for runs that are seeds of one recipe; unique for a run without a recipe."""
        if not self.settings:
            return (("", str(self.path)),)
        told = {key: value for key, value in self.settings.items() if not key.startswith(UNTOLD)}
        return tuple(sorted((key, repr(value)) for key, value in told.items()))


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads every run folder. Raises BadInput for a path that is none, or that is given twice."""
    for i, path in enumerate(paths):
        _check(path)
        if path.resolve() in [other.resolve() for other in paths[:i]]:
            raise BadInput(f"{path}: given twice")
    return [_read(path, name) for path, name in zip(paths, _names(paths), strict=True)]


def _check(path: Path) -> None:
    holds = ", ".join(f"{name} ({what})" for name, what in HOLDS.items())
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise BadInput(f"cannot read run folder {path}: {error.strerror}; gopd train makes one") from error
    if names & HOLDS.keys():
        return
    inside = sorted(name for name in names if (path / name / "recipe.yaml").is_file())
    mend = f"it holds runs: name them, as in {path / inside[0]}" if inside else f"one holds {holds}"
    raise BadInput(f"{path} is not a run folder; {mend}")


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' names, with as many parents as it takes to tell them apart."""
    whole = [path.resolve().parts for path in paths]
    depth = 1
    while len({parts[-depth:] for parts in whole}) < len(whole):
        depth += 1
    return ["/".join(parts[-depth:]) for parts in whole]


def _read(path: Path, name: str) -> Run:
    run = Run(path, name)
    _read_recipe(run)
    run.metrics = _read_lines(run, "metrics.jsonl")
    run.validation = [entry for entry in _read_lines(run, "validation.jsonl") if _is_validation(run, entry)]
    _read_versions(run)
    _judge(run)
    return run


def _read_recipe(run: Run) -> None:
    path = run.path / "recipe.yaml"
    if not path.is_file():
        run.problems.append("recipe.yaml is missing: method, λ and what the run was made with are not known")
        return
    try:
        tree = read_tree(path)
        run.settings = flatten(masked(tree))
        run.recipe = parse_recipe(tree, "recipe.yaml")
    except BadInput as error:
        run.problems.append(f"recipe.yaml is not one that this version reads, so λ is not known: {error}")


def _read_lines(run: Run, name: str) -> list[dict[str, Any]]:
    """Entries by step. A torn last line is how a killed or a running process leaves a file, and is left out."""
    try:
        *lines, _torn = (run.path / name).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        run.problems.append(f"{name} cannot be read: {error.strerror}")
        return []
    entries, damaged = [], []
    for number, line in enumerate(lines, 1):
        entry = _entry(line)
        if entry is None:
            damaged.append(str(number))
        else:
            entries.append(entry)
    if damaged:
        some = ", ".join(damaged[:5]) + (", …" if len(damaged) > 5 else "")
        run.problems.append(f"{name} is damaged in line {some} and shown without it")
    return sorted(entries, key=lambda entry: int(entry["step"]))


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and type(entry.get("step")) is int else None


def _is_validation(run: Run, entry: Mapping[str, Any]) -> bool:
    domains = entry.get("domains")
    whole = isinstance(entry.get("model"), str) and isinstance(domains, dict)
    if whole and all(isinstance(domain, dict) for domain in (domains or {}).values()):
        return True
    run.problems.append(f"validation.jsonl: the line of step {entry['step']} is no validation and left out")
    return False


def _read_versions(run: Run) -> None:
    try:
        record = json.loads((run.path / "versions.json").read_bytes())
    except FileNotFoundError:
        run.problems.append("versions.json is missing: hardware and versions are not known")
    except (OSError, ValueError, RecursionError) as error:
        run.problems.append(f"versions.json is damaged: {error}")
    else:
        if isinstance(record, dict):
            run.versions = record
        else:
            run.problems.append("versions.json is damaged: it holds no record")


def _judge(run: Run) -> None:
    if not run.metrics:
        run.problems.append("no step is finished: metrics.jsonl is missing or empty")
    if run.recipe is not None and run.recipe.validation is not None and not run.validation:
        run.problems.append("the recipe asks for validation, and validation.jsonl has none")
    for dump in sorted(run.path.glob("failure-step-*.jsonl")):
        run.problems.append(
            f"training once stopped at an optimizer step that was refused; its rows are in {dump.name}"
        )


def number(entry: Mapping[str, Any], key: str) -> float | None:
    """A finite number of an entry, else None."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def expects_rollouts(run: Run) -> bool:
    """Whether the recipe keeps rollouts with per-token numbers."""
    return isinstance(run.recipe, SampledRecipe) and run.recipe.tracking.rollouts_every > 0


def total_steps(recipe: Recipe | None) -> int | None:
    """Steps that the recipe asks for, where it says so in steps."""
    return None if recipe is None else recipe.train.steps
