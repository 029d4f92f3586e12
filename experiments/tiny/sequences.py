"""Number sequences: the rule is shown on the given numbers, and the next number stands in a box."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from schema import Problem
from steps import CONFUSED_WITH, NAMES, SLIPS, Step, step, worked

SHOWN = 4
"""Numbers that are given."""
WORDINGS = (
    "What comes next: {s}?",
    "Continue {s} by one number.",
    "{who} counts {s}. Which number is next?",
)
Numbers = list[int]


@dataclass(frozen=True, slots=True)
class Rule:
    """How sequences go on: `draw` makes the given numbers and the next, `solve` the steps that lead to it."""

    draw: Callable[[random.Random], Numbers]
    solve: Callable[[Numbers], list[Step]]


def _numbers(first: int, differences: Sequence[int]) -> Numbers:
    return [first + sum(differences[:i]) for i in range(len(differences) + 1)]


def _draw_growing(rng: random.Random) -> Numbers:
    first, more = rng.randint(1, 12), rng.randint(1, 4)
    return _numbers(rng.randint(0, 40), [first + more * i for i in range(SHOWN)])


def _draw_alternating(rng: random.Random) -> Numbers:
    up, down = rng.randint(2, 15), rng.randint(1, 14)
    return _numbers(rng.randint(0, 60), [up, -down] * (SHOWN // 2))


def _draw_multiplied(rng: random.Random) -> Numbers:
    factor, first = rng.randint(2, 4), rng.randint(1, 6)
    return [first * factor**i for i in range(SHOWN + 1)]


def _draw_summed(rng: random.Random) -> Numbers:
    numbers = [rng.randint(0, 30), rng.randint(1, 30)]
    while len(numbers) <= SHOWN:
        numbers.append(numbers[-2] + numbers[-1])
    return numbers


def _solve_growing(n: Numbers) -> list[Step]:
    first, second, third = (b - a for a, b in pairwise(n))
    return [*(step(b, "-", a) for a, b in pairwise(n)), step(n[3], "+", third + (second - first))]


def _solve_multiplied(n: Numbers) -> list[Step]:
    factor = n[1] // n[0]
    return [*(step(a, "*", factor) for a in n[:2]), step(n[3], "*", factor)]


RULES = (
    Rule(
        lambda rng: _numbers(rng.randint(0, 80), [rng.randint(2, 20)] * SHOWN),
        lambda n: [*(step(b, "-", a) for a, b in pairwise(n[:3])), step(n[3], "+", n[1] - n[0])],
    ),
    Rule(
        lambda rng: _numbers(rng.randint(20, 99), [-rng.randint(2, 20)] * SHOWN),
        lambda n: [*(step(a, "-", b) for a, b in pairwise(n[:3])), step(n[3], "-", n[0] - n[1])],
    ),
    Rule(_draw_growing, _solve_growing),
    Rule(
        _draw_alternating,
        lambda n: [step(n[1], "-", n[0]), step(n[1], "-", n[2]), step(n[3], "-", n[1] - n[2])],
    ),
    Rule(_draw_multiplied, _solve_multiplied),
    Rule(_draw_summed, lambda n: [step(a, "+", b) for a, b in pairwise(n)]),
)


def draw_sequence(rng: random.Random, wanted: Callable[[str], bool]) -> Problem:
    """A random sequence with a wanted key; every number is from 0 to 99, and only one continuation fits a rule."""
    while True:
        rule = rng.choice(RULES)
        *given, following = rule.draw(rng)
        key = " ".join(map(str, given))
        fits = all(0 <= n < 100 for n in (*given, following))
        if fits and set(_continuations(given)) == {following} and wanted(key):
            break
    solution = rule.solve(given)
    assert solution[-1][3] == following
    wording = rng.choice(WORDINGS).format(s=", ".join(map(str, given)), who=rng.choice(NAMES))
    return Problem(
        key=key,
        prompt=wording,
        ground_truth=str(following),
        solution=worked(solution),
        mistaken=lambda rng: _mistaken(solution, rng),
    )


def _continuations(n: Numbers) -> Iterator[int]:
    """What follows by each rule that the given numbers obey."""
    steps = [b - a for a, b in pairwise(n)]
    if len(set(steps)) == 1:
        yield n[-1] + steps[0]
    if steps[0] > 0 and steps[1] - steps[0] == steps[2] - steps[1] > 0:
        yield n[-1] + 2 * steps[2] - steps[1]
    if steps[0] == steps[2] > 0 > steps[1]:
        yield n[-1] + steps[1]
    if n[0] and n[1] % n[0] == 0 and all(b == a * (n[1] // n[0]) for a, b in pairwise(n)):
        yield n[-1] * (n[1] // n[0])
    if n[0] + n[1] == n[2] and n[1] + n[2] == n[3]:
        yield n[2] + n[3]


def _mistaken(solution: list[Step], rng: random.Random) -> str:
    """The last step goes wrong: a slip, another number, or the wrong operator."""
    *before, (left, symbol, right, result) = solution
    while True:
        kind = rng.randrange(3)
        if kind == 0:
            last = step(left, symbol, right, rng.choice(SLIPS))
        elif kind == 1:
            last = step(left, symbol, right + rng.choice((-1, 1)))
        else:
            last = step(left, CONFUSED_WITH[symbol], right)
        if last[3] != result and last[2] >= 0 and 0 <= last[3] < 200:
            return worked([*before, last])
