"""What cannot work is refused in one paragraph with exit code 2 before any work; what fails later loses nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from conftest import MakeModel
from forks import Forks
from gopd import cli
from runs import Tree, held_out, lines, merged, opd_tree, saved_steps, sft_tree, write_recipe, write_rows


@pytest.fixture(scope="module")
def models(make_model: MakeModel) -> list[Path]:
    return [make_model(seed) for seed in range(3)]


@pytest.fixture
def train(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Runs `gopd train` in this process: exit code and what went to stderr."""

    def run(tree: Tree, *arguments: str) -> tuple[int, str]:
        recipe = write_recipe(tmp_path / "recipe.yaml", tree)
        capfd.readouterr()
        code = cli.main(["train", str(recipe), *arguments])
        return code, capfd.readouterr().err

    return run


Train = Callable[..., tuple[int, str]]


def refused(train: Train, tree: Tree, *expected: str, arguments: tuple[str, ...] = ()) -> str:
    """Checks that a recipe is refused as bad input, tidily and without a trace; returns the message."""
    folder = Path(tree["tracking"]["folder"])
    code, message = train(tree, *arguments)
    assert code == 2, message
    assert message.startswith("gopd: ") and message.count("\n\n") == 0 and "Traceback" not in message
    assert "Loading weights" not in message
    for part in expected:
        assert part in message, message
    assert not folder.is_dir() or not any(folder.iterdir())
    return message


CHANGES: list[tuple[Tree, tuple[str, ...]]] = [
    ({"train": {"stepz": 1}}, ("unknown key train.stepz", "did you mean train.steps?")),
    ({"train": {"steps": "many"}}, ("train.steps", "integer", "'many'")),
    ({"objective": {"reward_scale": -1}}, ("objective.reward_scale", "greater than or equal to 0")),
    ({"student": {"model": "./nowhere"}}, ("student", "./nowhere", "no model folder")),
    ({"teachers": {"a": {"model": "builtin:nothing"}}}, ("builtin:nothing", "nothing of that name")),
    ({"teachers": {"a": {"model": "/no/where"}}}, ("teacher a", "/no/where")),
    ({"reference": {"model": "/no/where"}}, ("reference of a", "/no/where")),
    ({"data": {"files": ["absent.jsonl"]}}, ("absent.jsonl", "no such file")),
    ({"data": {"files": []}}, ("data", "files and hub")),
    ({"data": {"max_prompt_tokens": 3}}, ("no prompts are left", "of 12, 12 were dropped")),
    ({"data": {"max_prompt_tokens": 9, "overlong": "error"}}, ("12 of 12 prompts", "train.jsonl:1 ")),
    ({"data": {"max_response_tokens": 500}}, ("context of 512", "max_response_tokens")),
    ({"train": {"prompts_per_step": 13}}, ("prompts_per_step", "only 12 prompts")),
    ({"tracking": {"name": "a/b"}}, ("tracking.name",)),
    ({"student": {"lora": {"target_modules": ["nothing"]}}}, ("student.lora", "nothing")),
    ({"teachers": {"a": {"view": {"template": "{solution}"}}}}, ("{solution}", "train.jsonl:1", "columns:")),
    ({"checkpoint": {"keep_best": True}}, ("keep_best needs a validation",)),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=lambda v: str(v)[:50])
def test_a_recipe_that_cannot_run_is_refused(
    train: Train, models: list[Path], tmp_path: Path, change: Tree, expected: tuple[str, ...]
) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1]})
    refused(train, merged(tree, change), *expected)


def test_missing_recipe(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "nowhere.yaml"]) == 2
    assert "cannot read recipe nowhere.yaml" in capfd.readouterr().err


def test_malformed_rows_are_named_by_file_and_line(train: Train, models: list[Path], tmp_path: Path) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1]})
    data = tmp_path / "train.jsonl"
    whole = data.read_text().splitlines()
    data.write_text("\n".join([*whole[:3], whole[3][:20], *whole[4:]]) + "\n")
    refused(train, tree, "train.jsonl:4: not JSON")
    refused(train, merged(tree, {"data": {"limit": 3}}), "prompts_per_step")  # line 4 is not read
    data.write_text(whole[0] + "\n" + json.dumps({"question": "1+1"}) + "\n")
    refused(train, tree, "train.jsonl:2: ", "'prompt'", "columns: question")


def test_routes_must_name_teachers(train: Train, models: list[Path], tmp_path: Path) -> None:
    tree = opd_tree(tmp_path, models[0], {"math": models[1], "code": models[2]})
    write_rows(tmp_path / "train.jsonl", 6, ("math", "code", "maths"))
    refused(
        train,
        tree,
        "train.jsonl:3, ",
        "'maths' names no teacher",
        "known: math, code",
        "did you mean 'math'?",
    )
    write_rows(tmp_path / "train.jsonl", 6)
    refused(train, tree, "6 of 6 rows", "train.jsonl:1, ", "names no teacher", "known: math, code")
    rows = write_rows(tmp_path / "train.jsonl", 6, ("math", "code")) and held_out(
        tmp_path, 2, ("math", "art")
    )
    refused(train, merged(tree, {"validation": rows}), "heldout.jsonl:2: ", "'art' names no teacher")


def test_vocabularies_must_agree(
    train: Train, models: list[Path], make_model: MakeModel, tmp_path: Path
) -> None:
    other = make_model(1)
    path = other / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["b"], vocabulary["a"] = vocabulary["a"], vocabulary["b"]
    path.write_text(json.dumps(tokenizer))
    first = min(vocabulary["a"], vocabulary["b"])
    tree = opd_tree(tmp_path, models[0], {"a": models[1]})
    for where in ({"teachers": {"a": {"model": str(other)}}}, {"reference": {"model": str(other)}}):
        refused(train, merged(tree, where), f"id {first} is 'a' for student, 'b' for")
    wider = make_model(1, vocab_size=80)
    refused(train, merged(tree, {"teachers": {"a": {"model": str(wider)}}}), "80 logits, the student 64")


def test_every_model_needs_room_for_its_own_view_of_the_prompt(
    train: Train, models: list[Path], make_model: MakeModel, tmp_path: Path
) -> None:
    small = make_model(1, max_position_embeddings=34)
    alone: Tree = {"student": {"view": {"suffix": "please"}}, "objective": {"reward_scale": 1.0}}
    tree = opd_tree(tmp_path, models[0], {"a": models[1]}, **alone)
    refused(train, merged(tree, {"student": {"model": str(small)}}), "student", "exceed its context of 34")
    refused(train, merged(tree, {"teachers": {"a": {"model": str(small)}}}), "teacher a", "context of 34")
    fits: Tree = {"data": {"max_response_tokens": 1}, "train": {"steps": 1}, "tracking": {"name": "fits"}}
    assert train(merged(merged(tree, fits), {"teachers": {"a": {"model": str(small)}}}))[0] == 0
    long_view: Tree = {"teachers": {"a": {"view": {"suffix": "x" * 600}}}}
    (tmp_path / "more").mkdir()
    elsewhere: Tree = {"tracking": {"folder": str(tmp_path / "more" / "runs")}}
    refused(train, merged(merged(tree, long_view), elsewhere), "teacher a", "exceed its context of 512")


def test_a_model_without_a_chat_template(
    train: Train, make_model: MakeModel, models: list[Path], tmp_path: Path
) -> None:
    bare = make_model(1)
    (bare / "chat_template.jinja").unlink()
    assert AutoTokenizer.from_pretrained(bare).chat_template is None
    tree = opd_tree(tmp_path, models[0], {"a": models[1]})
    refused(train, merged(tree, {"student": {"model": str(bare)}}), "student", "no chat template")
    refused(train, merged(tree, {"teachers": {"a": {"model": str(bare)}}}), "teacher a", "no chat template")


def test_a_model_whose_weights_are_not_numbers(
    train: Train, make_model: MakeModel, models: list[Path], tmp_path: Path
) -> None:
    broken = make_model(1)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    tree = opd_tree(tmp_path, models[0], {"a": broken})
    refused(train, tree, "teacher a", "not finite")


def test_overlong_prompts_are_dropped_or_cut_as_the_recipe_says(
    train: Train, models: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1]}, train={"steps": 1, "prompts_per_step": 2})
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(
            json.dumps({"data_source": "long", "prompt": "9" * 99, "extra_info": {"opd_teacher": "a"}}) + "\n"
        )
    for policy, said in (("drop", "1 dropped, 0 cut"), ("truncate", "0 dropped, 1 cut")):
        caplog.clear()
        code, message = train(merged(tree, {"data": {"overlong": policy}, "tracking": {"name": policy}}))
        assert code == 0, message
        assert f"1 of 13 prompts are longer than 64 tokens: {said}" in caplog.text


def test_a_tracker_that_is_not_installed(
    train: Train, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "trackio", None)
    tree = opd_tree(tmp_path, models[0], {"a": models[1]}, tracking={"trackers": ["trackio"]})
    refused(train, tree, "trackio is not installed", "pip install gopd[trackio]")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(train: Train, models: list[Path], tmp_path: Path) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1]}, train={"device": "cuda"})
    refused(train, tree, "train.device is cuda", "no GPU")


def test_an_unwritable_output(train: Train, models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    tree = opd_tree(
        tmp_path, models[0], {"a": models[1]}, tracking={"folder": str(tmp_path / "file" / "runs")}
    )
    refused(train, tree, "cannot use", "tracking.folder")
    assert (tmp_path / "file").read_text() == "here"


def test_an_existing_run_is_left_alone(train: Train, models: list[Path], tmp_path: Path) -> None:
    tree = opd_tree(tmp_path, models[0], {"a": models[1]}, train={"steps": 1})
    assert train(tree)[0] == 0
    run = tmp_path / "runs" / "run"
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    code, message = train(tree)
    assert code == 2 and "holds a run already" in message and "--resume" in message
    code, message = train(merged(tree, {"optim": {"lr": 2e-3}, "student": {"model": "gone"}}), "--resume")
    assert code == 2 and "optim.lr: 0.001 → 0.002" in message and "student.model: " in message
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_bad_input_on_resume_leaves_the_run_as_it_is(
    train: Train, models: list[Path], make_model: MakeModel, tmp_path: Path
) -> None:
    teacher = make_model(5)
    tree = opd_tree(tmp_path, models[0], {"a": teacher}, train={"steps": 1})
    assert train(tree)[0] == 0
    run = tmp_path / "runs" / "run"
    for path in (run / "student").iterdir():
        path.unlink()
    (run / "student").rmdir()  # as if killed before the export
    (teacher / "model.safetensors").unlink()
    code, message = train(tree, "--resume")
    assert code == 2 and "teacher a" in message
    assert saved_steps(run) == [1] and len(lines(run / "metrics.jsonl")) == 1


@pytest.mark.parametrize("method", ["opd", "sft"])
def test_numbers_that_overflow_stop_the_run_and_the_rows_are_kept(
    train: Train, models: list[Path], tmp_path: Path, method: str
) -> None:
    """The second step's learning rate ruins the weights; the third step's loss or gradient is no number."""
    changes: Tree = {
        "optim": {"lr": 1e12, "warmup_steps": 1},
        "train": {"steps": 5},
        "checkpoint": {"every": 1},
    }
    first, second = (models[0], {"a": models[1]})
    tree = (
        opd_tree(tmp_path, first, second, **changes)
        if method == "opd"
        else sft_tree(tmp_path, first, **changes)
    )
    code, message = train(tree)
    run = tmp_path / "runs" / "run"
    assert code == 1 and "Traceback" not in message
    steps = [entry["step"] for entry in lines(run / "metrics.jsonl")]
    failed = steps[-1] + 1
    dump = run / f"failure-step-{failed:08d}.jsonl"
    assert "nan" in message and f"at step {failed}" in message and str(dump) in message
    rows = lines(dump)
    assert 1 <= len(rows) <= 4
    for row in rows:
        assert "train.jsonl:" in row["where"] and row["prompt_ids"] and row["response_ids"]
    assert saved_steps(run) == steps[-2:] and not (run / "student").exists()
    before = (run / "metrics.jsonl").read_bytes()
    code, again = train(tree, "--resume")
    assert code == 1 and f"at step {failed}" in again
    assert (run / "metrics.jsonl").read_bytes() == before


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    server = Forks()
    yield server
    server.close()


def test_a_full_disk_fails_the_run_and_keeps_the_checkpoint_before(
    forks: Forks, models: list[Path], tmp_path: Path
) -> None:
    keep: Tree = {"every": 1, "keep_last": 3}
    recipe = write_recipe(
        tmp_path / "recipe.yaml", opd_tree(tmp_path, models[0], {"a": models[1]}, checkpoint=keep)
    )
    run, log = tmp_path / "runs" / "run", tmp_path / "log"
    assert forks.run("train", recipe, output=log) == 0, log.read_text()
    for folder in ("student", "checkpoints/step-00000002", "checkpoints/step-00000003"):
        shutil.rmtree(run / folder)  # as if killed after the first step
    size = (run / "checkpoints" / "step-00000001" / "optimizer.safetensors").stat().st_size
    assert forks.run("train", recipe, "--resume", output=log, largest=size // 2) == 1
    text = log.read_text()
    assert f"gopd: cannot write {run / 'checkpoints' / 'step-00000002'}" in text and "Traceback" not in text
    assert saved_steps(run) == [1] and [p for p in run.rglob(".*") if p.name != ".lock"] == []
    assert forks.run("train", recipe, "--resume", output=log) == 0
    assert [entry["step"] for entry in lines(run / "metrics.jsonl")] == [1, 2, 3]
