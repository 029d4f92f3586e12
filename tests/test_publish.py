"""Model cards as the Hub reads them, and uploads to a Hub on this machine by the Hub's own client."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from gopd.card import merge_card, student_card
from gopd.recipe_file import parse_recipe
from gopd.rows import resolve
from gopd.validate import Domain, Validation
from hub import Hub
from runs import merged

TOKEN = "hf_canaryCANARYcanary"
BASE = resolve("builtin:base")
TREE: dict[str, Any] = {
    "method": "opd",
    "student": {"model": "Qwen/Qwen3-4B"},
    "teachers": {
        "math": {"model": "/home/someone/experts/math", "reward_scale": 1.5},
        "code": {"model": "my/code"},
    },
    "data": {"files": ["/home/someone/prompts.jsonl"]},
    "train": {"steps": 7},
    "tracking": {"name": "mine"},
}


def card_of(tree: dict[str, Any], last: Validation | None = None) -> str:
    return student_card(parse_recipe(tree, "here"), 7, last)


def test_a_students_card_tells_origin_scores_and_recipe_and_no_paths() -> None:
    domains = {
        "math": Domain(20, 40, 0.625, 0.4, 0.8, 12.0, 0.1, 0.3),
        "prose": Domain(5, 5, None, None, None, 9.0, 0.0, 0.2),
    }
    text = card_of(TREE, Validation(7, "student", domains))
    assert "`Qwen/Qwen3-4B` after 7 steps of gopd `opd`" in text
    assert "| math | math | 1.5 |" in text and "| code | my/code | 1.25 |" in text
    assert "| math | 20 | 0.625 | 0.400 to 0.800 |" in text and "| prose" not in text
    assert "/home" not in text and "arxiv.org/abs/2602.12125" in text
    (recipe,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert yaml.safe_load(recipe)["data"]["files"] == ["prompts.jsonl"]
    data = ModelCard(text).data
    assert (data.base_model, data["base_model_relation"]) == (["Qwen/Qwen3-4B"], "finetune")
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["gopd", "on-policy-distillation"]


@pytest.mark.parametrize("model", ["builtin:base", "/home/someone/model", "./model", str(BASE)])
def test_what_is_not_on_the_hub_is_no_base_there(model: str) -> None:
    data = ModelCard(card_of(merged(TREE, {"student": {"model": model}}))).data
    assert data.base_model is None and "base_model_relation" not in data.to_dict()


def test_a_merges_card_names_what_was_merged() -> None:
    text = merge_card(["a/math", "a/code", "/home/someone/x"], "a/base", 0.5)
    data = ModelCard(text).data
    assert (data.base_model, data["base_model_relation"]) == (["a/math", "a/code", "a/base"], "merge")
    assert "- `x`" in text and "α = 0.5" in text and "/home" not in text


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(TOKEN) as running:
        yield running


def push(hub: Hub, folder: Path, *words: str, token: str = TOKEN) -> tuple[int, str]:
    """Exit code, and all that was said; the token is never part of it."""
    home = {"HF_HOME": str(folder / "none"), "HF_ENDPOINT": hub.url, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "gopd.cli", "push", str(folder), *words],
        env=os.environ | home,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert TOKEN not in said
    return done.returncode, said


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run folder, as far as this goes."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "optimizer.safetensors").write_bytes(b"large")
    (tmp_path / "recipe.yaml").write_text("{}")
    (tmp_path / "student").symlink_to(BASE)
    return tmp_path


def test_a_runs_student_arrives_byte_for_byte_and_nothing_else(hub: Hub, run: Path) -> None:
    code, said = push(hub, run, "me/mine", "--private", "--revision", "v1", "--message", "First")
    assert (code, said.strip()) == (0, f"{hub.url}/me/mine/commit/{'1' * 40}")
    assert hub.repositories["me/mine"]["visibility"] == "private" and hub.messages == ["First"]
    assert hub.requests["models/me/mine/branch/v1"] == 1
    assert hub.files == {"me/mine@v1": {path.name: path.read_bytes() for path in BASE.iterdir()}}


def test_what_the_hub_refuses_is_told_with_the_mend(hub: Hub, run: Path) -> None:
    code, said = push(hub, run, "me/mine", token="hf_another")
    assert code == 1 and "me/mine: the Hub does not accept the token (401)" in said
    hub.refuses = 403
    code, said = push(hub, run, "me/mine")
    assert code == 1 and "the token may not write there (403)" in said


def test_a_hub_out_of_reach_is_told(hub: Hub, run: Path) -> None:
    hub.url = "http://127.0.0.1:9"
    code, said = push(hub, run, "me/mine")
    assert code == 1 and "the Hub cannot be reached" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "token", "said"),
    [
        ("mine", TOKEN, "give owner and name, as in OWNER/mine"),
        ("me/a b", TOKEN, "cannot be the name of a repository"),
        ("me/mine", "", "no token for the Hub: set HF_TOKEN"),
    ],
)
def test_bad_input_sends_nothing(hub: Hub, run: Path, name: str, token: str, said: str) -> None:
    code, found = push(hub, run, name, token=token)
    assert code == 2 and said in found and not hub.requests


def test_folders_without_a_model_send_nothing(hub: Hub, run: Path, tmp_path: Path) -> None:
    (run / "student").unlink()
    code, said = push(hub, run, "me/mine")
    assert code == 2 and "this run has no student yet" in said
    assert (
        push(hub, tmp_path / "checkpoints", "me/mine")[1].count("neither a run folder nor a model folder")
        == 1
    )
    assert "there is no such folder" in push(hub, tmp_path / "nowhere", "me/mine")[1]
    assert not hub.requests
