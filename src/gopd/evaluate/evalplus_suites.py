"""Rows of HumanEval+ and MBPP+, in EvalPlus's format, with what their canonical solutions return.

That is computed once per problem, in the sandbox, and kept in the user's cache folder; long values as digests only, so
that all of MBPP+ takes a few megabytes.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from gopd.errors import BadInput, RunFailed
from gopd.evaluate.code_suites import SUFFIX
from gopd.evaluate.problem import Advance, Problem, Reading, Row, field
from gopd.files import atomic_write
from gopd.verify import evalplus
from gopd.verify._values import decode, encode
from gopd.verify.calls import Digest

_FORMAT = 1
_CANONICAL_SECONDS = 60.0


def problems(suite: str, rows: Iterable[Row], reading: Reading, advance: Advance) -> list[Problem]:
    """Problems whose judge knows what should come back. Raises RunFailed when a canonical solution fails."""
    taken = list(islice(rows, reading.limit))
    texts = [str(field(where, row, "prompt")).strip() for where, row in taken]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        graded = []
        for done, problem in enumerate(pool.map(functools.partial(_problem, suite), taken), 1):
            graded.append(problem)
            advance(done, len(taken))
    return [
        Problem(
            str(row["task_id"]), f"```python\n{text}\n```{SUFFIX}", functools.partial(evalplus.judge, problem)
        )
        for (_, row), text, problem in zip(taken, texts, graded, strict=True)
    ]


def _problem(suite: str, taken: Row) -> evalplus.Problem:
    where, row = taken
    names = ("task_id", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")
    task, function, _, base, plus, tolerance = (field(where, row, name) for name in names)
    convert = _converter(str(task)) if suite == "mbpp+" else list
    try:
        arguments = [[convert(given) for given in inputs] for inputs in (base, plus)]
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise BadInput(f"{where}: the inputs of {task} are not as EvalPlus has them: {error}") from error
    solution = str(row["prompt"]) + str(row["canonical_solution"])
    kept = _canonical(where, solution, str(function), arguments)
    tests = [
        evalplus.CallSet(given, [_read(value) for value in values], seconds)
        for given, (values, seconds) in zip(arguments, kept, strict=True)
    ]
    return evalplus.Problem(suite, str(function), float(tolerance), *tests)


def _canonical(
    where: str, solution: str, function: str, arguments: list[list[list[Any]]]
) -> list[tuple[list[Any], list[float]]]:
    """For base and extra tests: values as JSON, and seconds; from the cache, or computed."""
    key = json.dumps([_FORMAT, evalplus.DIGEST_ABOVE, solution, function, encode(arguments)])
    path = cache_folder() / "evalplus" / f"{hashlib.sha256(key.encode()).hexdigest()}.json.gz"
    if path.exists():
        kept: list[tuple[list[Any], list[float]]] = json.loads(gzip.decompress(path.read_bytes()))
        return kept
    base, plus = arguments
    made = evalplus.calls(solution, function, base + plus, [_CANONICAL_SECONDS] * len(base + plus))
    if made.failure is not None:
        raise RunFailed(f"{where}: the canonical solution itself fails here ({made.failure})")
    values = [_written(value) for value in made.values]
    kept = [
        (values[: len(base)], made.seconds[: len(base)]),
        (values[len(base) :], made.seconds[len(base) :]),
    ]
    atomic_write(path, gzip.compress(json.dumps(kept).encode(), mtime=0))
    return kept


def cache_folder() -> Path:
    """Where what can be computed again is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gopd"


def _written(value: Any) -> Any:
    return {"sha256": value.sha256} if isinstance(value, Digest) else encode(value)


def _read(tree: Any) -> Any:
    if isinstance(tree, dict) and "sha256" in tree:
        return Digest(tree["sha256"])
    return decode(tree)


Convert = Callable[[list[Any]], list[Any]]


def _converter(task: str) -> Convert:
    """JSON has no tuples, sets or complex numbers: what a task of MBPP+ has in place of the lists and texts there."""
    number = int(task.rpartition("/")[2])
    return next((convert for numbers, convert in _CONVERSIONS.items() if number in numbers), list)


def _deep_tuple(value: Any) -> Any:
    return tuple(map(_deep_tuple, value)) if isinstance(value, list) else value


def _tuples(value: Iterable[Any]) -> list[Any]:
    return [tuple(item) for item in value]


_CONVERSIONS: Mapping[tuple[int, ...], Convert] = {
    (
        *(2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424),
        *(429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809),
    ): _tuples,
    (63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780): lambda row: [*map(_tuples, row)],
    (75, 413, 444, 753): lambda row: [_tuples(row[0]), *row[1:]],
    (106, 750): lambda row: [row[0], tuple(row[1])],
    (115,): lambda row: [[set(item) if isinstance(item, list) and item else {} for item in row[0]]],
    (124,): lambda row: [float(row[0]), complex(row[1])],
    (250, 307, 405, 446, 617, 720, 763, 808): lambda row: [tuple(row[0]), *row[1:]],
    (252,): lambda row: [complex(row[0])],
    (259, 401, 445): lambda row: [tuple(_tuples(argument)) for argument in row],
    (278,): lambda row: [tuple(tuple(x) if isinstance(x, list) else x for x in row[0])],
    (722,): lambda row: [{key: tuple(value) for key, value in row[0].items()}, *row[1:]],
    (580, 615, 791): lambda row: [*map(_deep_tuple, row)],
}
