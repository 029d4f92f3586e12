from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gopd.errors import BadInput
from gopd.verify import math

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Disputed cases that this project decides the other way; no undisputed case is among them.
OTHERWISE = {
    "m050": "only \\boxed counts, not \\fbox",
    "m052": "the last box alone is the answer; neighbouring boxes are not joined",
    "m054": "the last box alone is the answer; neighbouring boxes are not joined",
    "m144": "equal for positive n only",
    "m146": "a mixed number written plainly, `1 1/4`, is read as a product",
    "m148": "an inequality is not an interval",
    "m150": "an inequality is not an interval",
}


@pytest.fixture(scope="module", autouse=True)
def _end_worker() -> Iterator[None]:
    yield
    math._WORKER.close()


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    path = DATA / "math_cases.jsonl"
    if not path.exists():
        pytest.skip(f"shared data absent: {path.name}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_real_cases(cases: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    differing = set()
    for case in cases:
        monkeypatch.setattr(math, "SECONDS", 1.0 if case["category"] == "bomb" else 20.0)
        if math.grade(case["gold"], case["prediction"]) != case["should_match"]:
            differing.add(case["id"])
    assert differing == set(OTHERWISE)
    assert all(c["disputed"] for c in cases if c["id"] in OTHERWISE)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("no box", None),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}} and so on }", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed {5}", "5"),
        (r"\boxed{}", ""),
        (r"\boxed{1} cut off at \boxed{2", "1"),
        (r"an open { before \boxed{7}", "7"),
        (r"\fbox{7}", None),
        (r"\boxed{a \boxed{b}}", "b"),
    ],
)
def test_last_balanced_box(text: str, content: str | None) -> None:
    assert math.last_boxed(text) == content


def test_finding_the_box_is_linear() -> None:
    start = time.perf_counter()
    assert math.last_boxed(r"\boxed{" * 200_000) is None
    assert time.perf_counter() - start < 2


# Decided without math-verify: number or text comparison.
@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("72", "72", True),
        ("72", "73", False),
        ("25", "025", True),
        ("004", "4", True),
        ("72", "72.", True),
        ("72", "72.00", True),
        ("8.5", "8.50", True),
        ("0.3333", "0.333", False),
        ("0", "-0", True),
        ("5", "+5", True),
        ("81920", "81{,}920", True),
        ("81920", "81,920", True),
        ("81,920", "81920", True),
        ("11111111100", r"11,\! 111,\! 111,\! 100", True),
        ("1000.99", "1,000.99", True),
        ("18", r"\$18", True),
        ("18", "$18$", True),
        (r"\boxed{72}", "72", True),
        (r"so \boxed{1} or \boxed{\frac12}", r"\frac12", True),
        ("9" * 5000, "9" * 5000 + ".0", True),
        ("9" * 5000, "9" * 4999 + "8", False),
        ("x^2", "", False),
        ("x^2", " ", False),
        ("1", "x" * 3000, False),
    ],
)
def test_plain_answers_need_no_worker(
    gold: str, answer: str, equal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(math, "_compare", None)
    assert math.grade(gold, f"I think \\boxed{{{answer}}}.") is equal


def test_plain_answers_take_microseconds() -> None:
    response = "Some reasoning with {braces} and $x$.\n" * 20 + r"\boxed{72}"
    start = time.perf_counter()
    for _ in range(1000):
        math.grade("72", response)
    assert (time.perf_counter() - start) / 1000 < 1e-3


# Values that differ by less than any absolute tolerance, and neighbours that do not differ.
@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        ("1/2004!", "1/2006!", False),
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}", False),
        ("1/2004!", r"\frac{1}{2004!}", True),
        (r"\sqrt{2}\cdot 10^{-20}", r"\sqrt{3}\cdot 10^{-20}", False),
        (r"\sqrt{2}\cdot 10^{-20}", r"\frac{\sqrt{8}}{2}\cdot 10^{-20}", True),
        (r"\{10^{-20}, 1\}", r"\{10^{-21}, 1\}", False),
        (r"(10^{-20},1)", r"(10^{-21},1)", False),
        ("x=2^{-99}", "2^{-98}", False),
        ("x=2^{-99}", "2^{-99}", True),
        ("2^{100}", "2^{100}+1", False),
        (r"\frac{1}{3}", "0.333333", True),
        (r"\infty", r"+\infty", True),
        (r"\infty", r"-\infty", False),
    ],
)
def test_exact_values_are_compared_relative_to_their_size(gold: str, answer: str, equal: bool) -> None:
    assert math.grade(gold, f"\\boxed{{{answer}}}") is equal


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [
        (r"\pm 2021", "2021", False),
        (r"\pm 2021", r"\{2021, -2021\}", True),
        (r"1\pm\sqrt{2}", r"1+\sqrt{2}", False),
        (r"1\pm\sqrt{2}", r"1-\sqrt{2}, 1+\sqrt{2}", True),
        ("72", r"72 \text{ dollars}", True),
        ("5", "x=5", True),
    ],
)
def test_answers_with_several_values_or_words(gold: str, answer: str, equal: bool) -> None:
    assert math.grade(gold, f"\\boxed{{{answer}}}") is equal


def test_a_bomb_is_wrong_within_the_limit_and_the_next_answer_is_graded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert math.grade("1/2", r"\boxed{\frac{2}{4}}")
    monkeypatch.setattr(math, "SECONDS", 0.5)
    start = time.monotonic()
    assert not math.grade("1", r"\boxed{8^{8^{8^{8^{8}}}}}")
    assert time.monotonic() - start < 5
    monkeypatch.setattr(math, "SECONDS", 20.0)
    assert math.grade("1/2", r"\boxed{\frac{3}{6}}")


def test_a_worker_that_died_is_replaced() -> None:
    assert math.grade("1/5", r"\boxed{\frac{2}{10}}")
    process = math._WORKER._process
    assert process is not None
    process.kill()
    process.wait()
    assert math.grade("1/5", r"\boxed{\frac{3}{15}}")


def test_an_interrupted_comparison_does_not_answer_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> bytes:
        raise KeyboardInterrupt

    assert math.grade("1/7", r"\boxed{\frac{2}{14}}")
    with monkeypatch.context() as patch:
        patch.setattr(math, "_reply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            math.grade("1/7", r"\boxed{\frac{3}{21}}")
    assert not math.grade("1/7", r"\boxed{\frac{3}{22}}")


def test_threads_share_the_worker() -> None:
    results: dict[int, bool] = {}

    def work(i: int) -> None:
        results[i] = math.grade(f"{i}/101", f"\\boxed{{\\frac{{{2 * i + i % 2}}}{{202}}}}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: i % 2 == 0 for i in range(1, 25)}


def test_the_worker_ends_with_the_program_and_nothing_heavy_is_imported() -> None:
    code = r"""
import sys
from gopd.verify import math
assert math.grade("1/2", r"\boxed{\frac{2}{4}}")
heavy = {"torch", "sympy", "math_verify", "transformers"} & set(sys.modules)
assert not heavy, heavy
print(math._WORKER._process.pid)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stderr == ""
    assert not Path(f"/proc/{int(done.stdout)}").exists()


@pytest.mark.parametrize("gold", ["", "  ", "$$", r"\boxed{}"])
def test_a_gold_without_an_answer_is_bad_input(gold: str) -> None:
    with pytest.raises(BadInput, match="holds no answer"):
        math.check_gold(gold)
