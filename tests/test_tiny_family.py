"""The tiny family's data: the split really separates, right answers are right, wrong ones are wrong."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gopd.verify import check_ground_truth, verifier_for

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = ROOT / "src" / "gopd" / "tiny"
sys.path.insert(0, str(ROOT / "experiments" / "tiny"))

from problems import Domain, Row, part_of, rows  # noqa: E402

MODELS = tuple(sorted(path.name for path in SHIPPED.iterdir() if path.is_dir()))
DOMAINS: tuple[Domain, ...] = ("arithmetic", "lists", "sequences", "strings")


def read(name: str) -> list[Row]:
    found: list[Row] = pq.read_table(SHIPPED / name).to_pylist()
    return found


def prompt_text(row: Row) -> str:
    return str(row["prompt"][0]["content"])


def content(row: Row) -> str:
    """What a row asks, read off its own right answer and tests, without trusting its `key`."""
    solution = row["extra_info"]["ref_solution"]
    return str(row["data_source"] + solution)


def answers(response: str, inputs: list[list[Any]]) -> list[Any]:
    block = re.fullmatch(r"```python\n(.*)\n```", response, re.DOTALL)
    assert block is not None
    namespace: dict[str, Any] = {}
    exec(block[1], namespace)  # our own generated demonstrations
    return [namespace["f"](*arguments) for arguments in inputs]


def boxed(response: str) -> str:
    found = re.search(r"\\boxed\{(\d+)\}$", response)
    assert found is not None
    return found[1]


def is_right(row: Row) -> bool:
    truth = row["reward_model"]["ground_truth"]
    if row["data_source"] in ("tiny/arithmetic", "tiny/sequences"):
        return boxed(row["response"]) == str(truth)
    tests = json.loads(truth)
    assert tests["fn_name"] == "f"
    return answers(row["response"], tests["inputs"]) == list(tests["outputs"])


@pytest.mark.parametrize("domain", DOMAINS)
def test_without_mistakes_every_demonstration_is_right(domain: Domain) -> None:
    assert all(is_right(row) for row in rows(domain, "train", 400, seed=3))


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_mistake_is_graded_wrong(domain: Domain) -> None:
    found = rows(domain, "train", 400, seed=3, mistake_rate=1.0)
    assert not any(is_right(row) for row in found)
    assert all(is_right(row | {"response": row["extra_info"]["ref_solution"]}) for row in found)


def test_mistakes_come_at_the_asked_rate() -> None:
    found = rows("arithmetic", "train", 2000, seed=3, mistake_rate=0.3)
    assert abs(sum(not is_right(row) for row in found) / 2000 - 0.3) < 0.05


def value_of(expression: str) -> int:
    return int(eval(compile(ast.parse(expression, mode="eval"), "problem", "eval"), {"__builtins__": {}}))


def test_arithmetic_answers_follow_from_the_question() -> None:
    for row in rows("arithmetic", "train", 500, seed=4):
        truth = int(row["reward_model"]["ground_truth"])
        asked = re.fullmatch(r"(?:Compute|What is) ([-+*() 0-9]+)[.?]", prompt_text(row))
        if asked is not None:
            assert value_of(asked[1]) == truth
        steps = re.findall(r"(\S+)=(\d+)\.", row["response"])
        assert [value_of(left) for left, _ in steps] == [int(result) for _, result in steps]
        assert int(steps[-1][1]) == truth
        results = [result for _, result in steps[:-1]]
        used = [n for left, _ in steps for n in re.findall(r"\d+", left)]
        for result in results:
            used.remove(result)
        assert sorted(used) == sorted(re.findall(r"\d+", prompt_text(row)))


def test_sequences_go_on_as_the_given_numbers_do() -> None:
    """Held to a few rules written down anew: only one of them may fit, and it gives the answer."""
    kinds = set()
    for row in rows("sequences", "train", 1000, seed=4):
        numbers = [int(n) for n in re.findall(r"\d+", prompt_text(row))]
        a, b, c, d = numbers
        fitting = {}
        if b - a == c - b == d - c:
            fitting["steady"] = d + (b - a)
        if (c - b) - (b - a) == (d - c) - (c - b) != 0:
            fitting["growing"] = d + (d - c) + (d - c) - (c - b)
        if b - a == d - c and b > a and c < b:
            fitting["alternating"] = c + d - b
        if a and b * b == a * c and c * c == b * d and b % a == 0:
            fitting["multiplied"] = d * b // a
        if a + b == c and b + c == d:
            fitting["summed"] = c + d
        truth = int(row["reward_model"]["ground_truth"])
        assert set(fitting.values()) == {truth}
        kinds |= fitting.keys()
        steps = re.findall(r"(\S+)=(\d+)\.", row["response"])
        assert [value_of(left) for left, _ in steps] == [int(result) for _, result in steps]
        assert int(steps[-1][1]) == truth
    assert kinds == {"steady", "growing", "alternating", "multiplied", "summed"}


def test_programs_on_strings_do_what_their_words_say() -> None:
    """One problem of a kind, answered by hand."""
    by_words = {
        "removes every b": lambda s: s.replace("b", ""),
        "reverses it": lambda s: s[::-1],
        "puts it in upper case": str.upper,
        "keeps the digits": lambda s: "".join(c for c in s if c in "0123456789"),
        "takes every second character": lambda s: s[::2],
    }
    checked = 0
    for row in rows("strings", "train", 3000, seed=4):
        words = re.fullmatch(r"Write a Python function `f\(s\)` that (.*?), then (.*)\.", prompt_text(row))
        assert words is not None
        if words[1] in by_words and words[2] in by_words:
            tests = json.loads(row["reward_model"]["ground_truth"])
            for (given,), expected in zip(tests["inputs"], tests["outputs"], strict=True):
                assert by_words[words[2]](by_words[words[1]](given)) == expected
                checked += 1
    assert checked > 20


@pytest.mark.parametrize("domain", DOMAINS)
def test_rows_are_the_same_for_the_same_seed_only(domain: Domain) -> None:
    first = rows(domain, "train", 50, seed=5, mistake_rate=0.5)
    assert first == rows(domain, "train", 50, seed=5, mistake_rate=0.5)
    assert first != rows(domain, "train", 50, seed=6, mistake_rate=0.5)


@pytest.mark.parametrize("domain", DOMAINS)
def test_generated_parts_never_share_a_problem(domain: Domain) -> None:
    train, held_out = (rows(domain, part, 500, seed=7) for part in ("train", "heldout"))
    for view in (prompt_text, content, lambda row: row["extra_info"]["key"]):
        assert not {view(row) for row in train} & {view(row) for row in held_out}


@pytest.mark.parametrize("prefix", ["", "more-"])
def test_shipped_held_out_problems_never_appear_in_training(prefix: str) -> None:
    train, held_out = read(f"{prefix}train.parquet"), read(f"{prefix}heldout.parquet")
    for view in (prompt_text, content, lambda row: row["extra_info"]["key"]):
        assert not {view(row) for row in train} & {view(row) for row in held_out}
    assert {part_of(row["extra_info"]["key"]) for row in held_out} == {"heldout"}
    assert {part_of(row["extra_info"]["key"]) for row in train} == {"train"}


@pytest.mark.parametrize(("prefix", "pair"), [("", ["math", "code"]), ("more-", ["sequences", "strings"])])
def test_shipped_held_out_problems_are_distinct_and_alternate(prefix: str, pair: list[str]) -> None:
    held_out = read(f"{prefix}heldout.parquet")
    assert len({row["extra_info"]["key"] for row in held_out}) == len(held_out)
    assert len({prompt_text(row) for row in held_out}) == len(held_out)
    routes = [row["extra_info"]["opd_teacher"] for row in held_out]
    assert routes == pair * (len(routes) // 2)
    assert len(routes) >= 1000


def test_shipped_rows_can_be_graded() -> None:
    names = ("heldout.parquet", "train.parquet", "more-heldout.parquet", "more-train.parquet")
    for row in [row for name in names for row in read(name)]:
        check_ground_truth(verifier_for(row["data_source"]), row["reward_model"]["ground_truth"])


def test_the_family_is_whole() -> None:
    small = {"base", "math", "code", "sequences", "strings", "math-saturated", "code-saturated"}
    assert {*MODELS} == small | {"large-base", "large-math"}


@pytest.mark.parametrize("name", MODELS)
def test_shipped_models_are_small_and_carry_a_card(name: str) -> None:
    assert (SHIPPED / name / "model.safetensors").stat().st_size <= 3_000_000
    assert "license: apache-2.0" in (SHIPPED / name / "README.md").read_text(encoding="utf-8")
