"""Arithmetic problems, as expressions or in words, solved step by step with the answer in a box."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from schema import Problem
from steps import CONFUSED_WITH, NAMES, SLIPS, Step, step, worked


@dataclass(frozen=True, slots=True)
class Form:
    """A shape of problem: its expression, how operands are drawn, the steps that solve it, and its wording.

    `operands` gives a range per letter: `n` an addend of one or two digits, `s` a small one, `f` a factor.
    A step is `left operator right`; a digit stands for the result of that earlier step.
    """

    expression: str
    operands: dict[str, str]
    steps: tuple[str, ...]
    wording: str


FORMS = (
    Form(
        "{a} + {b} - {c}",
        {"a": "n", "b": "n", "c": "n"},
        ("a+b", "0-c"),
        "{who} has {a} {what}, gets {b} more and gives away {c}. How many {what} are left?",
    ),
    Form(
        "{a} - {b} + {c}",
        {"a": "n", "b": "n", "c": "n"},
        ("a-b", "0+c"),
        "{who} has {a} {what}, loses {b} and finds {c}. How many {what} are left?",
    ),
    Form(
        "{a} + {b} + {c}",
        {"a": "n", "b": "n", "c": "n"},
        ("a+b", "0+c"),
        "{who} sells {a} {what}, then {b}, then {c}. How many {what} in all?",
    ),
    Form(
        "{a} * {b} + {c}",
        {"a": "f", "b": "f", "c": "n"},
        ("a*b", "0+c"),
        "{who} buys {a} bags of {b} {what} and finds {c} more. How many {what} in all?",
    ),
    Form(
        "{a} * {b} - {c}",
        {"a": "f", "b": "f", "c": "n"},
        ("a*b", "0-c"),
        "{who} packs {a} boxes of {b} {what} and gives away {c}. How many {what} are left?",
    ),
    Form(
        "{a} + {b} * {c}",
        {"a": "n", "b": "f", "c": "f"},
        ("b*c", "a+0"),
        "{who} has {a} {what} and buys {b} bags of {c}. How many {what} in all?",
    ),
    Form(
        "({a} + {b}) * {c}",
        {"a": "s", "b": "s", "c": "f"},
        ("a+b", "0*c"),
        "Every day {who} sells {a} red and {b} blue {what}. How many {what} in {c} days?",
    ),
    Form(
        "{a} * {b} + {c} * {d}",
        {"a": "f", "b": "f", "c": "f", "d": "f"},
        ("a*b", "c*d", "0+1"),
        "{who} buys {a} bags of {b} {what} and {c} boxes of {d}. How many {what} in all?",
    ),
)
QUESTIONS = ("Compute {e}.", "What is {e}?")
THINGS = ("apples", "pens", "books", "coins", "cards", "eggs", "shells", "stamps")


def draw_arithmetic(rng: random.Random, wanted: Callable[[str], bool]) -> Problem:
    """A random arithmetic problem with a wanted key; every result is from 0 to 99."""
    while True:
        form = rng.choice(FORMS)
        numbers = {letter: _operand(kind, rng) for letter, kind in form.operands.items()}
        trace = _trace(form.steps, numbers)
        key = " ".join(f"{x}{symbol}{y}" for x, symbol, y, _ in trace)
        if all(0 <= result < 100 for _, _, _, result in trace) and wanted(key):
            break
    expression = form.expression.format(**numbers)
    if rng.random() < 0.5:
        prompt = rng.choice(QUESTIONS).format(e=expression)
    else:
        prompt = form.wording.format(who=rng.choice(NAMES), what=rng.choice(THINGS), **numbers)
    return Problem(
        key=key,
        prompt=prompt,
        ground_truth=str(trace[-1][3]),
        solution=worked(trace),
        mistaken=lambda rng: _mistaken_arithmetic(form.steps, numbers, trace[-1][3], rng),
    )


def _operand(kind: str, rng: random.Random) -> int:
    match kind:
        case "n":
            return rng.randint(1, 9) if rng.random() < 0.6 else rng.randint(10, 59)
        case "s":
            return rng.randint(1, 9)
        case _:
            return rng.randint(2, 9)


def _trace(
    steps: tuple[str, ...], numbers: dict[str, int], changes: dict[int, tuple[str, int]] | None = None
) -> list[Step]:
    """Works the steps out; `changes` maps a step to the operator used there and what its result is off by."""
    trace: list[Step] = []
    for index, (left, symbol, right) in enumerate(steps):
        x, y = (trace[int(name)][3] if name.isdigit() else numbers[name] for name in (left, right))
        symbol, slip = (changes or {}).get(index, (symbol, 0))
        trace.append(step(x, symbol, y, slip))
    return trace


def _mistaken_arithmetic(
    steps: tuple[str, ...], numbers: dict[str, int], right: int, rng: random.Random
) -> str:
    """One step goes wrong, by a slip in its result or by the wrong operator, and is carried on from there."""
    while True:
        index = rng.randrange(len(steps))
        symbol = steps[index][1]
        confused = (CONFUSED_WITH[symbol], 0)
        change = confused if rng.random() < 0.4 else (symbol, rng.choice(SLIPS))
        trace = _trace(steps, numbers, {index: change})
        if trace[-1][3] != right and all(0 <= result < 200 for _, _, _, result in trace):
            return worked(trace)
