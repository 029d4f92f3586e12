"""List problems: functions of two list operations and an ending."""

from __future__ import annotations

import random

from programs import Ending, Primitive, Toolbox


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
ENDINGS = {
    "list": Ending("", "xs", lambda xs: xs, "sum"),
    "sum": Ending(" and returns the sum", "sum(xs)", sum, "len"),
    "len": Ending(" and returns how many there are", "len(xs)", len, "sum"),
    "max": Ending(
        " and returns the largest",
        "max(xs, default=0)",
        lambda xs: _inserted([0, *xs][bool(xs) :])[-1],
        "sum",
    ),
}


def _inserted(xs: list[int]) -> list[int]:
    ordered: list[int] = []
    for x in xs:
        ordered.insert(sum(y <= x for y in ordered), x)
    return ordered


def _draw(rng: random.Random, last: bool) -> list[int]:
    """Numbers; the last input repeats itself."""
    if last:
        return [rng.randint(-1, 9) for _ in range(4)] * 2
    return [rng.randint(-5, 15) for _ in range(rng.randint(5, 9))]


LISTS = Toolbox("xs", PRIMITIVES, ENDINGS, _draw)
