"""Grading HumanEval+ and MBPP+: EvalPlus's tests and rules, in this package's sandbox.

The program under test gets arguments and nothing else; what the canonical solution returns for them is compared here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gopd import sandbox
from gopd.types import Reason, Verdict
from gopd.verify._values import digest, encode
from gopd.verify.calls import Calls, Digest, call
from gopd.verify.programs import last_program

DIGEST_ABOVE = 1 << 14
"""Characters; longer values are compared by their digest, so without a tolerance."""
_SHORTEST, _FACTOR, _LONGEST = 4.0, 4.0, 60.0
_MEMORY_BYTES, _OUTPUT_BYTES = 4 << 30, 1 << 26
_RELATIVE, _ABSOLUTE = 1e-7, 1e-6


@dataclass(frozen=True, slots=True)
class CallSet:
    """One set of calls: arguments, what should come back (`Digest` for long values), and the canonical seconds."""

    arguments: list[list[Any]]
    expected: list[Any]
    seconds: list[float]


@dataclass(frozen=True, slots=True)
class Problem:
    """A task of EvalPlus. `tolerance` is its `atol`; 0 asks for equality, save where decimals are expected."""

    suite: str
    function: str
    tolerance: float
    base: CallSet
    plus: CallSet


def judge(problem: Problem, response: str) -> Verdict:
    """Whether the last Python block of `response` passes base and extra tests; `Verdict.base`: the base ones alone."""
    program = last_program(response)
    if program is None:
        return Verdict("no-answer", None, base=False)
    reason = run_tests(problem, program, problem.base)
    if reason != "right":
        return Verdict(reason, program, base=False)
    return Verdict(run_tests(problem, program, problem.plus), program, base=True)


def run_tests(problem: Problem, program: str, tests: CallSet) -> Reason:
    """Runs one set of tests. As in EvalPlus a call may take 4 s, or 4 times the canonical solution's time."""
    seconds = [max(_SHORTEST, _FACTOR * canonical) for canonical in tests.seconds]
    made = calls(program, problem.function, tests.arguments, seconds)
    if made.failure is not None:
        return made.failure
    rows = zip(tests.arguments, tests.expected, made.values, strict=True)
    return "right" if all(_passes(problem, *row) for row in rows) else "wrong"


def calls(program: str, function: str, arguments: Sequence[list[Any]], seconds: Sequence[float]) -> Calls:
    """Calls a function with each of the argument lists, within EvalPlus's limits of time and memory."""
    total = min(_LONGEST, sum(seconds)) + 1
    limits = sandbox.Limits(
        total, math.ceil(total), memory_bytes=_MEMORY_BYTES, output_bytes=_OUTPUT_BYTES, open_files=64
    )
    given = [encode(row) for row in arguments]
    return call(
        program,
        function,
        given,
        limits=limits,
        seconds=seconds,
        digest_above=DIGEST_ABOVE,
        longest=DIGEST_ABOVE + 100,
    )


def _passes(problem: Problem, arguments: list[Any], expected: Any, returned: Any) -> bool:
    try:
        oracle = _ORACLES.get((problem.suite, problem.function))
        if oracle is not None:
            return oracle(problem, arguments, expected, returned)
        return _same(problem, expected, returned)
    except (TypeError, ValueError, OverflowError, ArithmeticError, RecursionError):  # values of unlike kinds
        return False


def _same(problem: Problem, expected: Any, returned: Any) -> bool:
    """EvalPlus's rule: equal, or of the same type and within the tolerance as NumPy's `allclose` has it."""
    if isinstance(expected, Digest) or isinstance(returned, Digest):
        return _sha256(expected) == _sha256(returned)
    if expected == returned:
        return True
    tolerance = problem.tolerance or (_ABSOLUTE if _is_decimal(expected) else 0.0)
    if not tolerance or type(expected) is not type(returned):
        return False
    if isinstance(expected, list | tuple) and len(expected) != len(returned):
        return False
    return bool(np.allclose(returned, expected, rtol=_RELATIVE, atol=tolerance))


def _sha256(value: Any) -> str:
    return value.sha256 if isinstance(value, Digest) else digest(value)


def _is_decimal(value: Any) -> bool:
    """A float, or a list or tuple of floats only."""
    many = isinstance(value, list | tuple) and bool(value)
    return isinstance(value, float) or (many and all(isinstance(item, float) for item in value))


# What EvalPlus decides in other ways than by comparing.


def _root(problem: Problem, arguments: list[Any], expected: Any, returned: Any) -> bool:
    """HumanEval/32: any root of the polynomial whose coefficients were given."""
    value: float = sum(c * math.pow(returned, power) for power, c in enumerate(arguments[0]))
    return abs(value) <= problem.tolerance


def _anything(problem: Problem, arguments: list[Any], expected: Any, returned: Any) -> bool:
    """Mbpp/164, whose tests are wrong: whatever comes back."""
    return True


def _or_zero(problem: Problem, arguments: list[Any], expected: Any, returned: Any) -> bool:
    """Mbpp/295: whether a number counts among its divisors is not said."""
    return bool(returned == 0) or _same(problem, expected, returned)


def _pyramid(problem: Problem, arguments: list[Any], expected: Any, returned: Any) -> bool:
    """Mbpp/581: the height may also be read as that of the apex above the base."""
    edge, height = arguments
    slant = math.sqrt((edge / 2) ** 2 + height**2)
    other = round(edge**2 + 2 * edge * slant)
    return abs(returned - other) <= problem.tolerance or _same(problem, expected, returned)


def _padded_digits(problem: Problem, arguments: list[Any], expected: Any, returned: Any) -> bool:
    """Mbpp/558: numbers of unlike length may also be filled with zeros on the left."""
    one, other = (str(number) for number in arguments)
    width = max(len(one), len(other))
    pairs = zip(one.zfill(width), other.zfill(width), strict=True)
    return bool(returned == sum(abs(int(a) - int(b)) for a, b in pairs)) or _same(problem, expected, returned)


def _as_sets(problem: Problem, arguments: list[Any], expected: Any, returned: Any) -> bool:
    return set(returned) == set(expected)


def _something(problem: Problem, arguments: list[Any], expected: Any, returned: Any) -> bool:
    """Whether anything came back at all; a truth value must be the right one."""
    given = returned if isinstance(returned, bool) else returned is not None
    return bool(given == (expected if isinstance(expected, bool) else expected is not None))


_Oracle = Callable[[Problem, list[Any], Any, Any], bool]
_SETS = (
    *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly", "larg_nnum"),
    *("intersection_array", "find_dissimilar", "Diff"),
)
_ORACLES: dict[tuple[str, str], _Oracle] = {
    ("humaneval+", "find_zero"): _root,
    ("mbpp+", "are_equivalent"): _anything,
    ("mbpp+", "sum_div"): _or_zero,
    ("mbpp+", "surface_Area"): _pyramid,
    ("mbpp+", "digit_distance_nums"): _padded_digits,
    **{("mbpp+", name): _as_sets for name in _SETS},
    **{("mbpp+", name): _something for name in ("check_str", "text_match_three", "text_starta_endb")},
}
