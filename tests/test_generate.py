"""The teachers' responses as data: whose they are, that they are the sampler's, and that a killed run goes on."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import gopd
from conftest import EOS, MakeModel
from gopd import generate as generate_module
from gopd.cli import main
from gopd.errors import BadInput
from gopd.generate import GENERATION, generate
from gopd.model import load_model
from gopd.recipe_file import parse_recipe
from gopd.rollouts import prompt_set, sample_rollouts
from gopd.sampler.torch import TorchSampler
from gopd.sections import ModelSpec
from gopd.setup import prepare
from runs import Tree, lines, merged, opd_tree, sft_tree, write_recipe
from tiny import CPU


@pytest.fixture
def tree(tmp_path: Path, student_folder: Path, teacher_folder: Path, reference_folder: Path) -> Tree:
    """Two teachers, the second with a view of its own; two prompts to a part."""
    made = opd_tree(tmp_path, student_folder, {"a": teacher_folder, "b": reference_folder})
    return merged(made, {"sampler": {"slots": 1}, "teachers": {"b": {"view": {"suffix": "!"}}}})


def rows_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return found


def test_every_prompt_is_answered_by_its_own_teacher_in_its_view(
    tree: Tree, tmp_path: Path, teacher_folder: Path, reference_folder: Path
) -> None:
    recipe = parse_recipe(tree)
    rows = rows_of(generate(recipe, tmp_path / "out", samples=2))
    data = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(data)
    for name, folder in (("a", teacher_folder), ("b", reference_folder)):
        spec = ModelSpec(model=str(folder))
        model = load_model(spec, "teacher", device=CPU, dtype=torch.float32)
        prompts = prompt_set(
            recipe.data, model.tokenizer, "teacher", recipe.teacher_view(name), routes=("a", "b"), limit=64
        )
        own = prompts.part([i for i, prompt in enumerate(prompts.prompts) if prompt.route == name])
        expected = sample_rollouts(
            TorchSampler(model, 8),
            model.tokenizer,
            own,
            recipe.sampler,
            samples=2,
            max_response_tokens=6,
            stream=(0, GENERATION),
            progress=lambda *_: None,
        )
        mine = [row for row in rows if row["extra_info"]["opd_teacher"] == name]
        assert [row["response"] for row in mine] == [r.text for r in expected]
        assert [row["finished"] for row in mine] == [r.finished for r in expected]
        assert [row["response_tokens"] for row in mine] == [len(r.response_ids) for r in expected]
    by_place = {row["extra_info"]["where"]: row for row in rows}
    assert len(by_place) == len(data)
    for number, original in enumerate(data, 1):
        row = by_place[f"{tmp_path / 'train.jsonl'}:{number}"]
        assert row["prompt"] == original["prompt"]
        assert row["reward_model"] == original["reward_model"]
        assert row["data_source"] == original["data_source"]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_gives_the_same_greedy_responses(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model(5, head_dim=32)
    tree = opd_tree(tmp_path, folder, {"a": folder}, sampler={"top_k": 1})
    own = rows_of(generate(parse_recipe(tree), tmp_path / "torch"))
    tree["sampler"]["engine"] = "vllm"
    other = rows_of(generate(parse_recipe(tree), tmp_path / "vllm"))
    assert own == other and len({row["response"] for row in own}) > 1


def test_a_killed_run_goes_on_without_asking_again(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = parse_recipe(tree)
    whole = generate(recipe, tmp_path / "whole").read_bytes()
    calls = 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return sample_rollouts(*arguments, **options)

    monkeypatch.setattr(generate_module, "sample_rollouts", counted)
    with pytest.raises(KeyboardInterrupt):
        generate(recipe, tmp_path / "cut")
    parts = len(list((tmp_path / "cut" / "parts").glob("*.parquet")))
    assert parts == 2
    with pytest.raises(BadInput, match="holds responses already; go on with them by --resume"):
        generate(recipe, tmp_path / "cut")
    with pytest.raises(BadInput, match="another recipe or other options"):
        generate(recipe, tmp_path / "cut", samples=2, resume=True)
    assert generate(recipe, tmp_path / "cut", resume=True).read_bytes() == whole
    made = calls
    assert generate(recipe, tmp_path / "cut", resume=True).read_bytes() == whole
    assert calls == made, "a finished run asks no one"
    assert not (tmp_path / "cut" / "parts").exists()


def test_only_correct_responses_are_kept(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = merged(tree, {"data": {"verifier": "math"}})
    monkeypatch.setattr(
        generate_module,
        "grade",
        lambda rollouts: [setattr(r, "reward", float(r.sample == 1)) for r in rollouts],
    )
    rows = rows_of(generate(parse_recipe(tree), tmp_path / "out", samples=3, keep_correct=True))
    assert "teacher b: 18 responses, 33.3% correct, 6 kept" in capsys.readouterr().out
    assert len(rows) == 12
    assert {row["extra_info"]["sample"] for row in rows} == {1}
    assert {row["reward"] for row in rows} == {1.0}


def test_the_file_is_data_for_sft_and_cut_responses_have_no_end(
    tree: Tree, tmp_path: Path, student_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", merged(tree, {"data": {"max_response_tokens": 40}}))
    assert main(["generate", str(recipe), "--to", str(tmp_path / "out"), "train.seed=4"]) == 0
    said = capsys.readouterr().out
    assert "teacher a: 6 responses" in said and "responses.parquet" in said
    path = tmp_path / "out" / "responses.parquet"
    rows = rows_of(path)
    sft = parse_recipe(
        sft_tree(
            tmp_path,
            student_folder,
            data={"files": [str(path)], "max_response_tokens": 60},
            tracking={"name": "sft"},
        )
    )
    run = gopd.train(sft)
    assert len(lines(run / "metrics.jsonl")) == 3
    demonstrations = prepare(sft).demonstrations
    assert demonstrations is not None
    assert len({row["finished"] for row in rows}) == 2, "both kinds must occur"
    for rollout, row in zip(demonstrations, rows, strict=True):
        assert (rollout.text, rollout.finished) == (row["response"], row["finished"])
        assert (rollout.response_ids[-1] == EOS) == row["finished"]


def test_bad_input_is_refused_before_any_response(tree: Tree, tmp_path: Path, student_folder: Path) -> None:
    sft = parse_recipe(sft_tree(tmp_path, student_folder))
    with pytest.raises(BadInput, match="method sft has no teachers"):
        generate(sft, tmp_path / "out")
    recipe = parse_recipe(tree)
    with pytest.raises(BadInput, match=r"train\.jsonl:1 and 11 more rows have no verifier"):
        generate(recipe, tmp_path / "out", keep_correct=True)
    with pytest.raises(BadInput, match="samples is 0"):
        generate(recipe, tmp_path / "out", samples=0)
    lost = merged(tree, {"teachers": {"b": {"model": str(tmp_path / "nowhere")}}})
    with pytest.raises(BadInput, match="teacher b: no model folder at"):
        generate(parse_recipe(lost), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadInput, match="exists and holds something else"):
        generate(recipe, tmp_path)
