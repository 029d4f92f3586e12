"""EvalPlus's rules, one by one, and that a program cannot get round them."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from gopd import sandbox
from gopd.verify import evalplus
from gopd.verify._values import decode, digest, encode
from gopd.verify.calls import Digest, call
from gopd.verify.evalplus import CallSet, Problem


def fenced(program: str) -> str:
    return f"So:\n```python\n{program}\n```\n"


def problem(
    function: str,
    arguments: list[list[Any]],
    expected: list[Any],
    *,
    suite: str = "humaneval+",
    tolerance: float = 0.0,
    base: int = 1,
) -> Problem:
    """The first `base` calls are the base tests, the others the extra ones."""
    seconds = [0.01] * len(arguments)
    parts = (slice(0, base), slice(base, None))
    tests = [CallSet(arguments[part], expected[part], seconds[part]) for part in parts]
    return Problem(suite, function, tolerance, *tests)


def verdict(program: str, *rest: Any, **options: Any) -> tuple[str, bool | None]:
    found = evalplus.judge(problem(*rest, **options), fenced(program))
    return found.reason, found.base


def returns(value: str, expected: Any, **options: Any) -> bool:
    """Whether `def f(): return value` passes for a function that should return `expected`."""
    return verdict(f"def f(): return {value}", "f", [[]], [expected], **options)[0] == "right"


def test_base_and_extra_tests_count_apart() -> None:
    rows: tuple[Any, ...] = ("f", [[1], [2], [3]], [1, 4, 9])
    assert verdict("def f(x): return x * x", *rows) == ("right", True)
    assert verdict("def f(x): return x", *rows) == ("wrong", True)
    assert verdict("def f(x): return 0", *rows) == ("wrong", False)
    assert verdict("def f(x): return x if x < 2 else 1 / 0", *rows) == ("error", True)
    assert verdict("def g(x): return x", *rows) == ("error", False)
    assert verdict("def f(x:", *rows) == ("error", False)
    found = evalplus.judge(problem(*rows), "no code")
    assert (found.reason, found.base, found.answer) == ("no-answer", False, None)


@pytest.mark.parametrize(
    ("value", "expected", "passes"),
    [
        ("(1, 2)", (1, 2), True),
        ("[1, 2]", (1, 2), False),
        ("(1, 2)", [1, 2], False),
        ("True", 1, True),
        ("1.0", 1, True),
        ("{1: (2,)}", {1: (2,)}, True),
        ("{'1': (2,)}", {1: (2,)}, False),
        ("{1, 2}", {2, 1}, True),
        ("frozenset([1])", {1}, True),
        ("10 ** 5000", [10**5000], False),
        ("[10 ** 5000]", [10**5000], True),
        ("[10 ** 5000 + 1]", [10**5000], False),
        ("b'x'", b"x", True),
        ("1 + 2j", 1 + 2j, True),
        ("'\\udc80'", "\udc80", True),
        ("None", None, True),
        ("0.1 + 0.2", 0.3, True),
        ("0.3001", 0.3, False),
        ("[0.1 + 0.2, 1.0]", [0.3, 1.0], True),
        ("(0.1 + 0.2, 1.0)", [0.3, 1.0], False),
        ("[0.1 + 0.2]", [0.3, 1.0], False),
        ("['a', 0.1 + 0.2]", ["a", 0.3], False),  # equality only: not all are floats
        ("float('nan')", 1.0, False),
        ("float('inf')", math.inf, True),
        ("1e400 - 1e400", math.nan, False),
        ("1.0", 1.0000005, True),
        ("1", 1.0000005, False),  # of another type
        ("type('E', (), {'__eq__': lambda *_: True})()", 5, False),
        ("type('E', (int,), {'__eq__': lambda *_: True})(4)", 5, False),
        ("type('R', (), {'__repr__': lambda _: '5'})()", 5, False),
        ("type('S', (str,), {'__eq__': lambda *_: True, '__hash__': str.__hash__})('b')", "a", False),
        ("iter([1])", [1], False),
    ],
)
def test_when_values_are_the_same(value: str, expected: Any, passes: bool) -> None:
    assert returns(value, expected) is passes


def test_the_tolerance_of_a_task() -> None:
    assert returns("5.00005", 5.0, tolerance=1e-4)
    assert not returns("5.0005", 5.0, tolerance=1e-4)
    assert returns("[[1, 2.00001]]", [[1, 2.0]], tolerance=1e-4)


def test_long_values_are_compared_by_digest() -> None:
    long = list(range(20_000))
    expected = [Digest(digest(long))]
    assert verdict("def f(): return [float(i) for i in range(20000)]", "f", [[]], expected)[0] == "right"
    assert verdict("def f(): return [*range(19999), 0]", "f", [[]], expected)[0] == "wrong"
    assert verdict("def f(): return tuple(range(20000))", "f", [[]], expected)[0] == "wrong"
    assert verdict("def f(): return 1", "f", [[]], expected)[0] == "wrong"


def test_any_root_of_the_polynomial_passes() -> None:
    """x² − 3x + 2: roots 1 and 2, whatever the canonical solution found."""
    rows: tuple[Any, ...] = ("find_zero", [[[2, -3, 1]]], [1.0])
    for root, reason in (
        ("1", "right"),
        ("2.00001", "right"),
        ("3", "wrong"),
        ("'1'", "wrong"),
        ("None", "wrong"),
    ):
        assert verdict(f"def find_zero(xs): return {root}", *rows, tolerance=1e-4)[0] == reason, root


@pytest.mark.parametrize(
    ("function", "arguments", "expected", "value", "passes"),
    [
        ("are_equivalent", [36, 57], False, "True", True),
        ("sum_div", [8], 7, "0", True),
        ("sum_div", [8], 7, "7", True),
        ("sum_div", [8], 7, "8", False),
        ("surface_Area", [3, 4], 33, "34", True),  # 9 + 6 · sqrt(2.25 + 16) = 34.6, rounded 35
        ("surface_Area", [3, 4], 33, "33", True),
        ("digit_distance_nums", [1, 23], 1, "4", True),  # |0 − 2| + |1 − 3|
        ("digit_distance_nums", [1, 23], 1, "5", False),
        ("similar_elements", [(1, 2), (2, 1)], (1, 2), "[2, 1, 1]", True),
        ("similar_elements", [(1, 2), (2, 1)], (1, 2), "[2]", False),
        ("similar_elements", [(1, 2), (2, 1)], (1, 2), "[[1], [2]]", False),
        ("check_str", ["a"], True, "__import__('re').match('a', 'a')", True),
        ("check_str", ["b"], False, "None", True),
        ("check_str", ["a"], True, "None", False),
        ("check_str", ["a"], True, "False", False),
    ],
)
def test_the_oracles_of_mbpp(
    function: str, arguments: list[Any], expected: Any, value: str, passes: bool
) -> None:
    if (function, value) == ("surface_Area", "34"):
        value = "35"
    program = f"def {function}(*_): return {value}"
    rows: tuple[Any, ...] = (function, [arguments], [expected])
    assert (verdict(program, *rows, suite="mbpp+")[0] == "right") is passes


ATTACKS = {
    "frames": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in [*frame.f_locals.values(), *frame.f_globals.values()]:
            if value == 1764 or value == [1764, 1849]:
                return 1764
        frame = frame.f_back
    return 0
""",
    "early exit": "import os\ndef f(x): os._exit(0)",
    "exit on import": "import os\nos._exit(0)",
    "system exit": "def f(x): raise SystemExit(0)",
    "no channel": """
import os
for descriptor in range(3, 64):
    try: os.close(descriptor)
    except OSError: pass
def f(x): return x * x
""",
    "flood": """
import os
def f(x):
    for descriptor in range(3, 64):
        try:
            while True: os.write(descriptor, b"x" * 65536)
        except OSError: pass
    return x * x
""",
    "fake lines": """
import os
def f(x):
    for descriptor in range(1, 9):
        try: os.write(descriptor, b'0 {"value": 1764, "seconds": 0}\\n')
        except OSError: pass
    os._exit(0)
""",
    "builtins": """
import builtins, json
builtins.isinstance = lambda *_: True
json.dumps = lambda *_: "{}"
def f(x): return 0
""",
    "deep": "def f(x):\n    v = []\n    for _ in range(10**5): v = [v]\n    return v",
    "cycle": "def f(x):\n    v = []\n    v.append(v)\n    return v",
    "recursion": "def f(x): return f(x)",
    "loop": "def f(x):\n    while True: pass",
    "sleep": "import time\ndef f(x): time.sleep(99)",
    "huge": "def f(x): return 10 ** 10 ** 7 * 0 + 1",
    "generator": "def f(x):\n    yield x * x",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_on_the_grader_fail(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them computes 42²; some send a guess without doing so, which is no more than a wrong program does."""
    monkeypatch.setattr(evalplus, "_SHORTEST", 0.5)
    asked = problem("f", [[42], [43]], [1764, 1849], base=2)
    found = evalplus.judge(asked, fenced(ATTACKS[name]))
    assert found.reason in ("wrong", "error", "timeout", "output-limit")
    assert found.base is False


def test_a_slow_call_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not only the limit for all calls, 21 · 0.3 + 1 s here."""
    monkeypatch.setattr(evalplus, "_SHORTEST", 0.3)
    asked = problem("f", [[1], *([2],) * 20], [1, *(2,) * 20], base=1)
    start = time.monotonic()
    found = evalplus.judge(asked, fenced("def f(x):\n    while x > 1: pass\n    return x"))
    assert (found.reason, found.base) == ("timeout", True)
    assert time.monotonic() - start < 4


def test_arguments_are_fresh_for_each_call_and_typed() -> None:
    arguments = [[(1, {2}, {3: (4,)}, 1j)]] * 2
    program = "seen = []\ndef f(t):\n    seen.append(1)\n    t[1].add(9)\n    return (t, len(seen))"
    made = call(program, "f", [encode(row) for row in arguments], limits=sandbox.Limits())
    assert made.failure is None
    assert made.values == [((1, {2, 9}, {3: (4,)}, 1j), 1), ((1, {2, 9}, {3: (4,)}, 1j), 2)]


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        3,
        -(1 << 70),
        0.5,
        "a\n",
        [1, [2]],
        (1, (2,)),
        {1: {2: 3}},
        {1, 2},
        frozenset([1]),
        1j,
        b"\x00",
        {},
    ],
)
def test_values_come_back_as_they_were(value: Any) -> None:
    again = decode(encode(value))
    assert again == value
    assert type(again) is type(value)
    assert digest(again) == digest(value)


def test_digests_are_the_same_for_equal_values_only() -> None:
    values: list[Any] = [
        0,
        1,
        1.0,
        True,
        1.5,
        "1",
        (1,),
        [1],
        [1.0],
        {1},
        {1: 1},
        {1.0: True},
        [],
        (),
        {},
        None,
        "[1]",
    ]
    for a in values:
        for b in values:
            assert (digest(a) == digest(b)) == (a == b), (a, b)
    assert digest({1: 2, 3: 4}) == digest({3: 4, 1: 2})
