"""List problems: write a Python function of two list operations and an ending, graded by running tests."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from schema import Problem

TESTS_PER_PROBLEM = 4


@dataclass(frozen=True, slots=True)
class Primitive:
    """One list operation: words and code for it (`{k}` its parameter), and an independent implementation.

    `rival` is the operation it is easily mistaken for.
    """

    words: str
    code: str
    apply: Callable[[list[int], int], list[int]]
    limits: tuple[int, int]
    rival: str


def _without_repeats(xs: list[int]) -> list[int]:
    return [x for i, x in enumerate(xs) if x not in xs[:i]]


PRIMITIVES = {
    "add": Primitive(
        "adds {k} to each number", "[x + {k} for x in xs]", lambda xs, k: [k + x for x in xs], (1, 9), "sub"
    ),
    "sub": Primitive(
        "subtracts {k} from each number",
        "[x - {k} for x in xs]",
        lambda xs, k: [-k + x for x in xs],
        (1, 9),
        "add",
    ),
    "mul": Primitive(
        "multiplies each number by {k}",
        "[x * {k} for x in xs]",
        lambda xs, k: [sum([x] * k) for x in xs],
        (2, 9),
        "add",
    ),
    "mod": Primitive(
        "takes each number modulo {k}",
        "[x % {k} for x in xs]",
        lambda xs, k: [x - k * (x // k) for x in xs],
        (2, 9),
        "mul",
    ),
    "square": Primitive(
        "squares each number", "[x * x for x in xs]", lambda xs, _: [x**2 for x in xs], (0, 0), "negate"
    ),
    "negate": Primitive(
        "negates each number", "[-x for x in xs]", lambda xs, _: [0 - x for x in xs], (0, 0), "square"
    ),
    "above": Primitive(
        "keeps the numbers above {k}",
        "[x for x in xs if x > {k}]",
        lambda xs, k: list(filter(lambda x: x - k > 0, xs)),
        (1, 9),
        "below",
    ),
    "below": Primitive(
        "keeps the numbers below {k}",
        "[x for x in xs if x < {k}]",
        lambda xs, k: list(filter(lambda x: k - x > 0, xs)),
        (1, 9),
        "above",
    ),
    "even": Primitive(
        "keeps the even numbers",
        "[x for x in xs if x % 2 == 0]",
        lambda xs, _: list(filter(lambda x: not x & 1, xs)),
        (0, 0),
        "odd",
    ),
    "odd": Primitive(
        "keeps the odd numbers",
        "[x for x in xs if x % 2 == 1]",
        lambda xs, _: list(filter(lambda x: x & 1, xs)),
        (0, 0),
        "even",
    ),
    "multiples": Primitive(
        "keeps the multiples of {k}",
        "[x for x in xs if x % {k} == 0]",
        lambda xs, k: list(filter(lambda x: x // k * k == x, xs)),
        (3, 9),
        "mod",
    ),
    "reverse": Primitive("reverses the list", "xs[::-1]", lambda xs, _: list(reversed(xs)), (0, 0), "sort"),
    "sort": Primitive("sorts the list", "sorted(xs)", lambda xs, _: _inserted(xs), (0, 0), "reverse"),
    "first": Primitive(
        "takes the first {k} items",
        "xs[:{k}]",
        lambda xs, k: [x for i, x in enumerate(xs) if i < k],
        (1, 5),
        "skip",
    ),
    "last": Primitive(
        "takes the last {k} items",
        "xs[-{k}:]",
        lambda xs, k: [x for i, x in enumerate(xs) if len(xs) - i <= k],
        (1, 5),
        "first",
    ),
    "skip": Primitive(
        "skips the first {k} items",
        "xs[{k}:]",
        lambda xs, k: [x for i, x in enumerate(xs) if i >= k],
        (1, 5),
        "first",
    ),
    "second": Primitive(
        "takes every second item",
        "xs[::2]",
        lambda xs, _: [x for i, x in enumerate(xs) if i % 2 == 0],
        (0, 0),
        "distinct",
    ),
    "distinct": Primitive(
        "removes repeats", "list(dict.fromkeys(xs))", lambda xs, _: _without_repeats(xs), (0, 0), "second"
    ),
}
ENDINGS: dict[str, tuple[str, str, Callable[[list[int]], Any], str]] = {
    "list": ("", "xs", lambda xs: xs, "sum"),
    "sum": (" and returns the sum", "sum(xs)", sum, "len"),
    "len": (" and returns how many there are", "len(xs)", len, "sum"),
    "max": (
        " and returns the largest",
        "max(xs, default=0)",
        lambda xs: _inserted([0, *xs][bool(xs) :])[-1],
        "sum",
    ),
}
"""Words, code, independent implementation, and the ending it is easily mistaken for."""


def _inserted(xs: list[int]) -> list[int]:
    ordered: list[int] = []
    for x in xs:
        ordered.insert(sum(y <= x for y in ordered), x)
    return ordered


@dataclass(frozen=True, slots=True)
class Program:
    """Two list operations with their parameters (0: none), then an ending."""

    operations: tuple[tuple[str, int], ...]
    ending: str

    def key(self) -> str:
        """Canonical content."""
        return " ".join(f"{name}{k or ''}" for name, k in self.operations) + f" {self.ending}"

    def words(self) -> str:
        """The task in words."""
        steps = ", then ".join(PRIMITIVES[name].words.format(k=k) for name, k in self.operations)
        return f"Write a Python function `f(xs)` that {steps}{ENDINGS[self.ending][0]}."

    def code(self) -> str:
        """The answer: a fenced block that defines f."""
        lines = [f"    xs = {PRIMITIVES[name].code.format(k=k)}" for name, k in self.operations]
        return "\n".join(["```python", "def f(xs):", *lines, f"    return {ENDINGS[self.ending][1]}", "```"])

    def run(self, xs: list[int]) -> Any:
        """The result by the independent implementations, not by `code`."""
        for name, k in self.operations:
            xs = PRIMITIVES[name].apply(xs, k)
        return ENDINGS[self.ending][2](xs)


def draw_lists(rng: random.Random, wanted: Callable[[str], bool]) -> Problem:
    """A random list problem with a wanted key; its tests tell it from at least four programs like it."""
    while True:
        names = rng.sample(list(PRIMITIVES), 2)
        operations = tuple((name, rng.randint(*PRIMITIVES[name].limits)) for name in names)
        program = Program(operations, rng.choice(list(ENDINGS)))
        if not wanted(program.key()):
            continue
        inputs = [
            [rng.randint(-5, 15) for _ in range(rng.randint(5, 9))] for _ in range(TESTS_PER_PROBLEM - 1)
        ]
        inputs.append([rng.randint(-1, 9) for _ in range(4)] * 2)
        outputs = [program.run(xs) for xs in inputs]
        wrong = [other.code() for other in _rivals(program) if [other.run(xs) for xs in inputs] != outputs]
        if len(wrong) >= 4:
            break
    tests = {"fn_name": "f", "inputs": [[xs] for xs in inputs], "outputs": outputs}
    return Problem(
        key=program.key(),
        prompt=program.words(),
        ground_truth=json.dumps(tests, separators=(",", ":")),
        solution=program.code(),
        mistaken=lambda rng: rng.choice(wrong),
    )


def _rivals(program: Program) -> list[Program]:
    """The programs one plausible mistake away: a wrong parameter, operation, order or ending."""
    first, second = program.operations
    rivals = [
        Program((second, first), program.ending),
        Program(program.operations, ENDINGS[program.ending][3]),
    ]
    for index, (name, k) in enumerate(program.operations):
        low, high = PRIMITIVES[name].limits
        rival = PRIMITIVES[name].rival
        rival_low, rival_high = PRIMITIVES[rival].limits
        swaps = [(name, k + step) for step in (-1, 1) if low <= k + step <= high]
        for swap in (*swaps, (rival, min(max(k, rival_low), rival_high))):
            operations = (swap, second) if index == 0 else (first, swap)
            rivals.append(Program(operations, program.ending))
    return rivals
