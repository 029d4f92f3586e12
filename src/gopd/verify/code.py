"""Grading programs: does the last code block of a response pass every test?

A ground truth is JSON as in APPS, TACO and the Eurus data: `{"inputs": [...], "outputs": [...]}`, with one text
(or list of lines) per test for whole programs that read standard input; or with `"fn_name"` too for a function, or
a method of `class Solution`, and then an input is a list of arguments, or a text with one JSON argument per line,
and an output the value to return. Programs run in `gopd.sandbox`, which never holds what they should answer.
"""

from __future__ import annotations

import json
import math
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopd import sandbox
from gopd.errors import BadInput

TEST_LIMITS = sandbox.Limits(seconds=10.0, cpu_seconds=6)
"""For one test of a whole program, or all calls of a function; wall clock leaves room for a busy machine."""
PROBLEM_SECONDS = 60.0
"""Wall clock for all tests of one response; one that needs more fails."""

_CALLS = (Path(__file__).parent / "_calls.py").read_text(encoding="utf-8")
_OPENING = re.compile(r"```[ \t]*([A-Za-z0-9_+-]*)$")
_PYTHON = {"python", "python3", "py"}
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9


@dataclass(frozen=True, slots=True)
class Problem:
    """The tests of one problem: texts when `function` is None, else argument lists and values to return."""

    function: str | None
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


def grade(ground_truth: str, response: str) -> bool:
    """Whether the last ```` ```python ```` block of `response` (or else its last bare block) passes every test.

    No finished block: False. Printed output is compared word by word, line by line, blank lines aside; decimals,
    printed or returned, within a relative 1e-6. Raises BadInput when `ground_truth` is malformed.
    """
    problem = parse_ground_truth(ground_truth)
    program = last_program(response)
    if program is None:
        return False
    if problem.function is None:
        return _passes_as_program(problem, program)
    return _passes_as_function(problem, problem.function, program)


def last_program(response: str) -> str | None:
    """The last finished Python code block; without any, the last finished block that names no language."""
    blocks = list(_blocks(response))
    python = [text for language, text in blocks if language in _PYTHON]
    bare = [text for language, text in blocks if not language]
    found = python or bare
    return found[-1] if found else None


def _blocks(response: str) -> Iterator[tuple[str, str]]:
    """Finished code blocks, as (language, text). A block opened inside an unfinished one starts afresh."""
    language, lines = "", None
    for line in response.split("\n"):  # not splitlines: form feeds and the like are part of the program
        opening = _OPENING.search(line.rstrip())
        if opening is not None and (lines is None or opening.group(1)):
            language, lines = opening.group(1).lower(), list[str]()
        elif lines is not None and line.lstrip().startswith("```"):
            yield language, "\n".join(lines) + "\n"
            lines = None
        elif lines is not None:
            lines.append(line)


def parse_ground_truth(text: str) -> Problem:
    """Reads the tests of a problem. Raises BadInput that says what is wrong with them."""
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise BadInput(f"code ground truth is not JSON: {error}") from error
    if not isinstance(tree, dict):
        raise _malformed(f"found {type(tree).__name__}")
    for key in ("inputs", "outputs"):
        if not isinstance(tree.get(key), list):
            raise _malformed(f"{key!r} is {'missing' if key not in tree else 'not a list'}")
    inputs, outputs, function = tree["inputs"], tree["outputs"], tree.get("fn_name")
    if len(inputs) != len(outputs):
        raise _malformed(f"{len(inputs)} inputs but {len(outputs)} outputs")
    if not inputs:
        raise _malformed("there are no tests")
    if function is None:
        texts = [tuple(_text(entry, i) for i, entry in enumerate(side)) for side in (inputs, outputs)]
        return Problem(None, *texts)
    if not isinstance(function, str) or not function.isidentifier():
        raise _malformed(f"'fn_name' is {function!r}, not the name of a function")
    pairs = [
        _call(given, expected, i) for i, (given, expected) in enumerate(zip(inputs, outputs, strict=True))
    ]
    return Problem(function, tuple(a for a, _ in pairs), tuple(b for _, b in pairs))


def _malformed(what: str) -> BadInput:
    return BadInput(
        f'malformed code ground truth: {what}; expected {{"inputs": [...], "outputs": [...]}} of equal length, '
        'with "fn_name" for functions'
    )


def _text(entry: Any, index: int) -> str:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, list) and all(isinstance(line, str) for line in entry):
        return "\n".join(entry)
    raise _malformed(
        f"test {index}: standard input and output must be text or a list of lines, found {entry!r:.80}"
    )


def _call(given: Any, expected: Any, index: int) -> tuple[list[Any], Any]:
    """The arguments and the value to return. Where the arguments come as JSON lines, so does the value."""
    if isinstance(given, list):
        return given, expected
    if not isinstance(given, str):
        raise _malformed(f"test {index}: arguments must be a list, or text with one JSON value per line")
    try:
        arguments = [json.loads(line) for line in given.split("\n") if line.strip()]
        return arguments, json.loads(expected) if isinstance(expected, str) else expected
    except ValueError as error:
        raise _malformed(f"test {index}: not one JSON value per line: {error}") from error


def _passes_as_program(problem: Problem, program: str) -> bool:
    deadline = time.monotonic() + PROBLEM_SECONDS
    for given, expected in zip(problem.inputs, problem.outputs, strict=True):
        if time.monotonic() > deadline:
            return False
        outcome = sandbox.run(program, stdin=given.encode("utf-8", "replace"), limits=TEST_LIMITS)
        if outcome.status != "ok" or not same_output(expected, outcome.stdout.decode("utf-8", "replace")):
            return False
    return True


def same_output(expected: str, printed: str) -> bool:
    """Whether two texts have the same words on the same lines, blank lines aside; decimals within 1e-6."""
    want, got = _words(expected), _words(printed)
    return len(want) == len(got) and all(
        len(a) == len(b) and all(map(_same_word, a, b)) for a, b in zip(want, got, strict=True)
    )


def _words(text: str) -> list[list[str]]:
    return [line.split() for line in text.split("\n") if line.strip()]


def _same_word(expected: str, printed: str) -> bool:
    """Integers digit by digit (`5.0` passes for `5`); decimals within the tolerance."""
    if expected == printed:
        return True
    if _INTEGER.fullmatch(expected):
        whole, point, fraction = printed.partition(".")
        return bool(point) and whole == expected and not fraction.strip("0")
    if not _DECIMAL.fullmatch(expected) or not _NUMBER.fullmatch(printed):
        return False
    return _close(float(expected), float(printed))


def _passes_as_function(problem: Problem, function: str, program: str) -> bool:
    token = secrets.token_hex(16)
    request = {"token": token, "program": program, "function": function, "calls": problem.inputs}
    outcome = sandbox.run(_CALLS, stdin=json.dumps(request).encode(), limits=TEST_LIMITS)
    if outcome.status != "ok":
        return False
    lines = outcome.stdout.decode("utf-8", "replace").splitlines()
    if len(lines) != len(problem.outputs) or not all(line.startswith(f"{token} ") for line in lines):
        return False
    try:
        returned = [json.loads(line.removeprefix(f"{token} ")) for line in lines]
    except (ValueError, RecursionError):  # not JSON, or nested without end
        return False
    return _same_returns(problem.outputs, returned)


def _same_returns(expected: Sequence[Any], returned: Sequence[Any]) -> bool:
    """Some of the data wraps every value to return in a list of one; then the bare values pass as well."""
    if all(map(same_value, expected, returned)):
        return True
    wrapped = all(isinstance(value, list) and len(value) == 1 for value in expected)
    return wrapped and all(same_value(value[0], got) for value, got in zip(expected, returned, strict=True))


def same_value(expected: Any, returned: Any) -> bool:
    """Equality of JSON values, as Python has it (True is 1); numbers within 1e-6 where one of them is a decimal."""
    if isinstance(expected, float) or isinstance(returned, float):
        both = isinstance(expected, int | float) and isinstance(returned, int | float)
        return both and _close(expected, returned)
    if isinstance(expected, list) and isinstance(returned, list):
        return len(expected) == len(returned) and all(map(same_value, expected, returned))
    if isinstance(expected, dict) and isinstance(returned, dict):
        return expected.keys() == returned.keys() and all(
            same_value(expected[k], returned[k]) for k in expected
        )
    return bool(expected == returned)


def _close(expected: float, got: float) -> bool:
    return expected == got or math.isclose(expected, got, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
