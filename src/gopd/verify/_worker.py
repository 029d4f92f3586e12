"""The process that holds math-verify: one JSON line in, one character out.

Run as a file, never imported by the package, so that neither SymPy nor its caprices enter the training process.
A request is `[gold, answer, seconds]`; the reply is `1` for equal, `0` for not. The process that asks kills this one
when a reply takes too long, and takes a death without reply as `0`.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterable
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Eq, Expr, FiniteSet, Float, Interval, MatrixBase, Symbol, Tuple, UnevaluatedExpr

_MEMORY_BYTES = 4 << 30
_CONFIG = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())
_RELATIVE_TOLERANCE = 1e-15
_DIGITS = 30


def equal(gold: str, answer: str) -> bool:
    """Whether math-verify takes `answer` for `gold`, and exact values, if that is what they are, do not differ."""
    gold_readings, answer_readings = _parse(gold), _parse(answer)
    for want in gold_readings:
        for got in answer_readings:
            if verify(want, got, timeout_seconds=None):
                return not _tell_apart(want, got)
    return False


def _parse(text: str) -> list[Any]:
    readings: list[Any] = parse(f"$\\boxed{{{text}}}$", _CONFIG, parsing_timeout=None)
    return readings


def _tell_apart(want: Any, got: Any) -> bool:
    """Whether two exact values, or collections of them, differ relative to their size.

    math-verify compares numbers by absolute difference, so that 1/2004! passes for 1/2006!.
    Decimals and percentages are left to its rounding rules.
    """
    want, got = _right_side(want), _right_side(got)
    for kind in (Tuple, Interval, MatrixBase):
        if isinstance(want, kind) and isinstance(got, kind):
            pairs = zip(_elements(want), _elements(got), strict=False)
            return any(_tell_apart(a, b) for a, b in pairs)
    if isinstance(want, FiniteSet) and isinstance(got, FiniteSet):
        return any(all(_tell_apart(a, b) for b in got.args) for a in want.args) or any(
            all(_tell_apart(a, b) for a in want.args) for b in got.args
        )
    if not (_is_exact(want) and _is_exact(got)):
        return False
    want, got = want.doit(), got.doit()
    if want.is_Rational and got.is_Rational:
        return bool(want != got)
    gap, *sizes = (abs(value).evalf(_DIGITS) for value in (want - got, want, got))
    if not all(value.is_Number and value.is_finite for value in (gap, *sizes)):
        return False
    return bool(gap > _RELATIVE_TOLERANCE * max(sizes))


def _elements(collection: Any) -> Iterable[Any]:
    elements: Iterable[Any] = collection.flat() if isinstance(collection, MatrixBase) else collection.args
    return elements


def _right_side(value: Any) -> Any:
    """`x = 5` counts as 5."""
    return value.rhs if isinstance(value, Eq) and isinstance(value.lhs, Symbol) else value


def _is_exact(value: Any) -> bool:
    return isinstance(value, Expr) and bool(value.is_number) and not value.has(Float, UnevaluatedExpr)


def main() -> None:
    """Answers requests until standard input ends."""
    logging.disable(logging.CRITICAL)
    replies = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(_MEMORY_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    assert equal(r"\frac{1}{2}", "0.5")  # the first comparison is slow: pay for it outside any time limit
    os.write(replies, b"!")  # ready
    os.dup2(nowhere, 2)
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        signal.alarm(int(seconds) + 2)  # ends this process should the one that asks be gone
        verdict = equal(gold, answer)
        signal.alarm(0)
        os.write(replies, b"1" if verdict else b"0")


if __name__ == "__main__":
    main()
