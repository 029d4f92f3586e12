"""Programming problems: write a Python function of two operations and an ending, graded by running tests.

`lists.py` and `strings.py` say which operations and endings there are; what is here is the same for both.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from schema import Problem

TESTS_PER_PROBLEM = 4
LETTERS = " abcdefghi"
"""What a parameter stands for where an operation wants a letter, as `{c}`."""


@dataclass(frozen=True, slots=True)
class Primitive:
    """One operation: words and code for it (`{k}` its parameter, a number), and an independent implementation.

    `rival` is the operation it is easily mistaken for.
    """

    words: str
    code: str
    apply: Callable[[Any, int], Any]
    limits: tuple[int, int]
    rival: str


@dataclass(frozen=True, slots=True)
class Ending:
    """What is returned: words and code for it, an independent implementation, and the ending it is mistaken for."""

    words: str
    code: str
    apply: Callable[[Any], Any]
    rival: str


@dataclass(frozen=True, slots=True)
class Toolbox:
    """What programs of one domain are made of; `draw` makes an input, the `last` of its problem or not."""

    variable: str
    primitives: Mapping[str, Primitive]
    endings: Mapping[str, Ending]
    draw: Callable[[random.Random, bool], Any]


@dataclass(frozen=True, slots=True)
class Program:
    """Two operations with their parameters (0: none), then an ending."""

    toolbox: Toolbox
    operations: tuple[tuple[str, int], ...]
    ending: str

    def key(self) -> str:
        """Canonical content."""
        return " ".join(f"{name}{k or ''}" for name, k in self.operations) + f" {self.ending}"

    def words(self) -> str:
        """The task in words."""
        primitives = self.toolbox.primitives
        steps = ", then ".join(
            primitives[name].words.format(k=k, c=LETTERS[k]) for name, k in self.operations
        )
        ending = self.toolbox.endings[self.ending].words
        return f"Write a Python function `f({self.toolbox.variable})` that {steps}{ending}."

    def code(self) -> str:
        """The answer: a fenced block that defines f."""
        v, primitives = self.toolbox.variable, self.toolbox.primitives
        lines = [
            f"    {v} = {primitives[name].code.format(k=k, c=LETTERS[k])}" for name, k in self.operations
        ]
        ending = f"    return {self.toolbox.endings[self.ending].code}"
        return "\n".join(["```python", f"def f({v}):", *lines, ending, "```"])

    def run(self, given: Any) -> Any:
        """The result by the independent implementations, not by `code`."""
        for name, k in self.operations:
            given = self.toolbox.primitives[name].apply(given, k)
        return self.toolbox.endings[self.ending].apply(given)


def draw_program(toolbox: Toolbox, rng: random.Random, wanted: Callable[[str], bool]) -> Problem:
    """A random problem with a wanted key; its tests tell it from at least four programs like it."""
    while True:
        names = rng.sample(list(toolbox.primitives), 2)
        operations = tuple((name, rng.randint(*toolbox.primitives[name].limits)) for name in names)
        program = Program(toolbox, operations, rng.choice(list(toolbox.endings)))
        if not wanted(program.key()):
            continue
        inputs = [toolbox.draw(rng, i == TESTS_PER_PROBLEM - 1) for i in range(TESTS_PER_PROBLEM)]
        outputs = [program.run(given) for given in inputs]
        wrong = [
            other.code() for other in _rivals(program) if [other.run(given) for given in inputs] != outputs
        ]
        if len(wrong) >= 4:
            break
    tests = {"fn_name": "f", "inputs": [[given] for given in inputs], "outputs": outputs}
    return Problem(
        key=program.key(),
        prompt=program.words(),
        ground_truth=json.dumps(tests, separators=(",", ":")),
        solution=program.code(),
        mistaken=lambda rng: rng.choice(wrong),
    )


def _rivals(program: Program) -> list[Program]:
    """The programs one plausible mistake away: a wrong parameter, operation, order or ending."""
    toolbox, (first, second) = program.toolbox, program.operations
    rivals = [
        Program(toolbox, (second, first), program.ending),
        Program(toolbox, program.operations, toolbox.endings[program.ending].rival),
    ]
    for index, (name, k) in enumerate(program.operations):
        low, high = toolbox.primitives[name].limits
        rival = toolbox.primitives[name].rival
        rival_low, rival_high = toolbox.primitives[rival].limits
        swaps = [(name, k + step) for step in (-1, 1) if low <= k + step <= high]
        for swap in (*swaps, (rival, min(max(k, rival_low), rival_high))):
            operations = (swap, second) if index == 0 else (first, swap)
            rivals.append(Program(toolbox, operations, program.ending))
    return rivals
