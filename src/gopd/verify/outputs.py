"""When two outputs, printed or returned, count as the same: by the rules here, and by LiveCodeBench's own grader."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from itertools import zip_longest
from typing import Any

_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LINE = re.compile(r"[^\n]+")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9


def same_output(expected: str, printed: str) -> bool:
    """Whether two texts have the same words on the same lines, blank lines aside; decimals within 1e-6.

    Goes no further than the first difference, and takes little memory whatever was printed.
    """
    lines = zip_longest(_filled_lines(expected), _filled_lines(printed))
    return all(want is not None and got is not None and _same_words(want, got) for want, got in lines)


def _filled_lines(text: str) -> Iterator[str]:
    return (line for line in (match.group() for match in _LINE.finditer(text)) if not line.isspace())


def _same_words(expected: str, printed: str) -> bool:
    want = expected.split()
    got = printed.split(maxsplit=len(want))
    return len(want) == len(got) and all(map(_same_word, want, got))


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


def same_value(expected: Any, returned: Any) -> bool:
    """Equality of JSON values, as Python has it (True is 1); tuples count as lists.

    Numbers are the same within 1e-6 where one of them is a decimal.
    """
    if isinstance(expected, float) or isinstance(returned, float):
        both = isinstance(expected, int | float) and isinstance(returned, int | float)
        return both and _close(expected, returned)
    if isinstance(expected, list) and isinstance(returned, list | tuple):
        return len(expected) == len(returned) and all(map(same_value, expected, returned))
    if isinstance(expected, dict) and isinstance(returned, dict):
        named = {_name(key): value for key, value in returned.items()}
        return expected.keys() == named.keys() and all(same_value(expected[k], named[k]) for k in expected)
    return bool(expected == returned)


def _name(key: Any) -> Any:
    """A key as JSON writes it; one that it cannot write, as bytes, stays itself and is the name of nothing."""
    try:
        return key if isinstance(key, str) else json.dumps(key)
    except (TypeError, ValueError, RecursionError):
        return key


def _close(expected: float, got: float) -> bool:
    try:
        return expected == got or math.isclose(expected, got, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    except OverflowError:  # an integer beyond all floats
        return False


def reference_output(expected: str, printed: str) -> bool:
    """LiveCodeBench's rule: line by line the same text, or the same decimals exactly; blank lines count."""
    want, got = ([line.strip() for line in text.strip().split("\n")] for text in (expected, printed))
    return len(want) == len(got) and all(map(_same_line, want, got))


def _same_line(expected: str, printed: str) -> bool:
    if expected == printed:
        return True
    try:
        return [Decimal(word) for word in expected.split()] == [Decimal(word) for word in printed.split()]
    except InvalidOperation:
        return False


def reference_value(expected: Any, returned: Any) -> bool:
    """LiveCodeBench's rule: Python's equality, a tuple as the whole value counting as a list."""
    return bool((list(returned) if isinstance(returned, tuple) else returned) == expected)
