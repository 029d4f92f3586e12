"""The suites: where their rows are, how a row becomes a problem, and the published settings."""

from __future__ import annotations

import difflib
import functools
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gopd.errors import BadInput, OutOfReach
from gopd.evaluate import code_suites, evalplus_suites, math_suites
from gopd.evaluate.problem import Advance, Problem, Reading, Row, parsed
from gopd.files import atomic_write
from gopd.rows import raw_rows
from gopd.sections import SourceSection

MATH_SAMPLES, CODE_SAMPLES, MAX_TOKENS = 32, 4, 16384
"""The published settings, together with temperature 1 and top-p 1."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a dataset repository on the Hub."""

    repository: str
    file: str


@dataclass(frozen=True, slots=True)
class Task:
    """A suite. `files` are the names it may have in a folder given by the user; `origin` is where it is published."""

    name: str
    domain: Literal["math", "code"]
    files: tuple[str, ...]
    origin: SourceSection | HubFile | str
    read: Callable[[Iterable[Row], Reading, Advance], list[Problem]]

    @property
    def samples(self) -> int:
        """Samples per problem in the published evaluation."""
        return MATH_SAMPLES if self.domain == "math" else CODE_SAMPLES


def _math(name: str, hub: str, split: str = "train", config: str | None = None, file: str = "") -> Task:
    origin = SourceSection(hub=hub, hub_config=config, split=split)
    files = tuple(f"{file or name}{end}" for end in (".jsonl", ".jsonl.gz", ".parquet"))
    return Task(
        name, "math", files, origin, lambda rows, reading, _: math_suites.problems(name, rows, reading)
    )


def _evalplus(name: str, file: str, version: str) -> Task:
    origin = f"https://github.com/evalplus/{file.lower()}_release/releases/download/{version}/{file}.jsonl.gz"
    read = functools.partial(evalplus_suites.problems, name)
    return Task(name, "code", (f"{file}.jsonl.gz", f"{file}.jsonl"), origin, read)


def _livecodebench(name: str, file: str, *others: str) -> Task:
    origin = HubFile("livecodebench/code_generation_lite", file)
    return Task(
        name,
        "code",
        (*others, file),
        origin,
        lambda rows, reading, _: code_suites.livecodebench(rows, reading),
    )


TASKS = {
    task.name: task
    for task in (
        _math("aime24", "HuggingFaceH4/aime_2024"),
        _math("aime25", "math-ai/aime25", "test"),
        _math("hmmt25_feb", "MathArena/hmmt_feb_2025"),
        _math("hmmt25_nov", "MathArena/hmmt_nov_2025"),
        _math("math500", "HuggingFaceH4/MATH-500", "test"),
        _math("gsm8k", "openai/gsm8k", "test", "main", file="gsm8k_test"),
        _evalplus("humaneval+", "HumanEvalPlus", "v0.1.10"),
        _evalplus("mbpp+", "MbppPlus", "v0.2.0"),
        _livecodebench("livecodebench_v6", "test6.jsonl", "livecodebench_v6.jsonl"),
    )
}


def tasks_named(names: str) -> list[Task]:
    """Tasks of a comma-separated list. Raises BadInput for a name that is none, with the nearest."""
    found = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise BadInput(f"no task {name!r}; {hint}there are {', '.join(TASKS)}")
        found.append(TASKS[name])
    if not found:
        raise BadInput(f"no tasks are named; there are {', '.join(TASKS)}")
    return list(dict.fromkeys(found))


def load(task: Task, data: Path | None, reading: Reading, advance: Advance) -> list[Problem]:
    """The problems of a task, from the user's folder or file, or from where it is published. Raises BadInput."""
    try:
        problems = task.read(parsed(raw_rows(_source(task, data))), reading, advance)
    except OutOfReach as error:
        raise OutOfReach(
            f"task {task.name}: {error}; or put the rows into a folder as {task.files[0]}, and give it by --data FOLDER"
        ) from error
    ids = [problem.id for problem in problems]
    if twice := next((name for name in ids if ids.count(name) > 1), None):
        raise BadInput(f"{task.name}: two problems have the id {twice!r}; take one of them out")
    return problems


def _source(task: Task, data: Path | None) -> SourceSection:
    if data is not None:
        return SourceSection(files=(str(_local(task, data)),))
    if isinstance(task.origin, SourceSection):
        return task.origin
    fetched = _from_hub(task.origin) if isinstance(task.origin, HubFile) else _download(task.origin)
    return SourceSection(files=(str(fetched),))


def _local(task: Task, data: Path) -> Path:
    if data.is_file():
        return data
    found = next((data / name for name in task.files if (data / name).is_file()), None)
    if found is None:
        what = "holds none of" if data.is_dir() else "is no folder or file; a folder is looked through for"
        raise BadInput(f"--data {data}: {what} {', '.join(task.files)}, the names of task {task.name}")
    return found


def _from_hub(origin: HubFile) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(origin.repository, origin.file, repo_type="dataset"))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise _out_of_reach(f"{origin.file} of the dataset {origin.repository}", error) from error


def _download(address: str) -> Path:
    path = evalplus_suites.cache_folder() / address.rpartition("/")[2]
    if not path.exists():
        try:
            with urllib.request.urlopen(address, timeout=60) as answer:
                content = answer.read()
        except (OSError, urllib.error.URLError) as error:
            raise _out_of_reach(address, error) from error
        atomic_write(path, content)
    return path


def _out_of_reach(what: str, error: Exception) -> OutOfReach:
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return OutOfReach(f"{what} cannot be reached ({reason}); fetch it elsewhere")
