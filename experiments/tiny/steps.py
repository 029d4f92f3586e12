"""Calculations written out step by step: `3+4=7. 7*2=14. \\boxed{14}`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

Step = tuple[int, str, int, int]
"""Left operand, operator, right operand, result."""

OPERATORS: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
CONFUSED_WITH = {"+": "-", "-": "+", "*": "+"}
SLIPS = (-10, -1, 1, 10)
NAMES = ("Tom", "Anna", "Sam", "Mia", "Leo", "Eva", "Max", "Zoe")


def step(left: int, symbol: str, right: int, slip: int = 0) -> Step:
    """One step worked out; its result is off by `slip`."""
    return left, symbol, right, OPERATORS[symbol](left, right) + slip


def worked(steps: Sequence[Step]) -> str:
    """The solution: every step, then the last result in a box."""
    shown = " ".join(f"{x}{symbol}{y}={result}." for x, symbol, y, result in steps)
    return f"{shown} \\boxed{{{steps[-1][3]}}}"
