"""Grading programs: does the last code block of a response pass every test?

A ground truth is JSON as in APPS, TACO and the Eurus data: `{"inputs": [...], "outputs": [...]}`, with one text
(or list of lines) per test for whole programs that read standard input; or with `"fn_name"` too for a function, or
a method of `class Solution`, and then an input is a list of arguments, or a text with one JSON argument per line,
and an output the value to return. Programs run in `gopd.sandbox`, which never holds what they should answer.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gopd import sandbox
from gopd.errors import BadInput
from gopd.types import Reason, Verdict
from gopd.verify._values import encode
from gopd.verify.calls import call
from gopd.verify.outputs import reference_output, reference_value, same_output, same_value
from gopd.verify.programs import between_last_fences, last_program


@dataclass(frozen=True, slots=True)
class Budget:
    """What a response may use: each run of a whole program and all of them together, in seconds; or all calls of a
    function together, and each of them, in seconds of CPU time (None: no limit of its own).

    Wall clock leaves room for a busy machine.
    """

    run: sandbox.Limits
    all_runs: float
    calls: sandbox.Limits
    each_call: float | None


TRAINING = Budget(sandbox.Limits(10.0, 6), 60.0, sandbox.Limits(10.0, 6), None)
_LARGE = {"memory_bytes": 4 << 30, "output_bytes": 1 << 26}
EVALUATION = Budget(
    sandbox.Limits(15.0, 6, **_LARGE), 600.0, sandbox.Limits(600.0, 600, **_LARGE), each_call=6.0
)
"""LiveCodeBench's own 6 s and 4 GiB for each test."""

# A value equal to what is expected may be longer as it comes back: `1` as `{"complex": [1.0, 0.0]}`. Not that much.
_LONGER = 64

# What judges of such problems import beforehand, but for random, which costs several ms more in every grading.
_PRELUDE = """
import bisect, collections, functools, heapq, itertools, math, operator, re, string, sys
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache, cmp_to_key, lru_cache, reduce
from heapq import heapify, heappop, heappush, nlargest, nsmallest
from itertools import accumulate, combinations, permutations, product
from math import ceil, comb, floor, gcd, inf, sqrt
from typing import *
"""
_REFERENCE_MODULES = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics"),
    *("itertools", "functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
_REFERENCE_PRELUDE = "\n".join(
    [
        *(f"from {name} import *" for name in _REFERENCE_MODULES),
        *(f"import {name}" for name in _REFERENCE_MODULES if name not in ("builtins", "typing")),
        "sys.setrecursionlimit(50000)\n",
    ]
)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a response is read, what a program finds imported, and when an output counts as the expected one."""

    find_program: Callable[[str], str | None]
    before_function: str
    before_program: str
    same_output: Callable[[str, str], bool]
    same_value: Callable[[Any, Any], bool]


OURS = Rules(last_program, _PRELUDE, "", same_output, same_value)
REFERENCE = Rules(
    between_last_fences, _REFERENCE_PRELUDE, _REFERENCE_PRELUDE, reference_output, reference_value
)
"""LiveCodeBench's own grader, where its rules differ."""


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
    return judge(parse_ground_truth(ground_truth), response).right


def judge(problem: Problem, response: str, *, rules: Rules = OURS, budget: Budget | None = None) -> Verdict:
    """As `grade`, with the reason; `budget` is `TRAINING` unless given."""
    program = rules.find_program(response)
    if program is None:
        return Verdict("no-answer", None)
    budget = budget or TRAINING
    if problem.function is None:
        return Verdict(_run_program(problem, program, rules, budget), program)
    return Verdict(_call_function(problem, problem.function, program, rules, budget), program)


def parse_ground_truth(text: str) -> Problem:
    """Reads the tests of a problem. Raises BadInput that says what is wrong with them."""
    try:
        tree = json.loads(text)
    except (ValueError, RecursionError) as error:
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
    except (ValueError, RecursionError) as error:
        raise _malformed(f"test {index}: not one JSON value per line: {error}") from error


def _run_program(problem: Problem, program: str, rules: Rules, budget: Budget) -> Reason:
    deadline = time.monotonic() + budget.all_runs
    for given, expected in zip(problem.inputs, problem.outputs, strict=True):
        if time.monotonic() > deadline:
            return "timeout"
        text = rules.before_program + program
        outcome = sandbox.run(text, stdin=given.encode("utf-8", "replace"), limits=budget.run)
        if outcome.status != "ok":
            return outcome.status
        if not rules.same_output(expected, outcome.stdout.decode("utf-8", "replace")):
            return "wrong"
    return "right"


def _call_function(problem: Problem, function: str, program: str, rules: Rules, budget: Budget) -> Reason:
    arguments = [encode(given) for given in problem.inputs]
    seconds = None if budget.each_call is None else [budget.each_call] * len(arguments)
    longest = _LONGER * max(len(json.dumps(expected)) for expected in problem.outputs) + 1024
    made = call(
        program,
        function,
        arguments,
        limits=budget.calls,
        prelude=rules.before_function,
        seconds=seconds,
        longest=longest,
    )
    if made.failure is not None:
        return made.failure
    return "right" if _same_returns(problem.outputs, made.values, rules.same_value) else "wrong"


def _same_returns(expected: Sequence[Any], returned: Sequence[Any], same: Callable[[Any, Any], bool]) -> bool:
    """Some of the data wraps every value to return in a list of one; then the bare values pass as well."""
    if all(map(same, expected, returned)):
        return True
    wrapped = all(isinstance(value, list) and len(value) == 1 for value in expected)
    return wrapped and all(same(value[0], got) for value, got in zip(expected, returned, strict=True))
