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

MODELS = ("base", "math", "code", "large-base", "large-math")
DOMAINS: tuple[Domain, ...] = ("arithmetic", "lists")


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
    if row["data_source"] == "tiny/arithmetic":
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


def test_shipped_held_out_problems_never_appear_in_training() -> None:
    train, held_out = read("train.parquet"), read("heldout.parquet")
    for view in (prompt_text, content, lambda row: row["extra_info"]["key"]):
        assert not {view(row) for row in train} & {view(row) for row in held_out}
    assert {part_of(row["extra_info"]["key"]) for row in held_out} == {"heldout"}
    assert {part_of(row["extra_info"]["key"]) for row in train} == {"train"}


def test_shipped_held_out_problems_are_distinct_and_alternate() -> None:
    held_out = read("heldout.parquet")
    assert len({row["extra_info"]["key"] for row in held_out}) == len(held_out)
    assert len({prompt_text(row) for row in held_out}) == len(held_out)
    routes = [row["extra_info"]["opd_teacher"] for row in held_out]
    assert routes == ["math", "code"] * (len(routes) // 2)
    assert len(routes) >= 1000


def test_shipped_rows_can_be_graded() -> None:
    for row in read("heldout.parquet") + read("train.parquet"):
        check_ground_truth(verifier_for(row["data_source"]), row["reward_model"]["ground_truth"])


@pytest.mark.parametrize("name", MODELS)
def test_shipped_models_are_small_and_carry_a_card(name: str) -> None:
    assert (SHIPPED / name / "model.safetensors").stat().st_size <= 3_000_000
    assert "license: apache-2.0" in (SHIPPED / name / "README.md").read_text(encoding="utf-8")
