"""Canaries: secrets in the environment, in recipes and behind a server are in nothing that is written or printed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from fake_server import FakeServer
from gopd import cli, loop
from gopd.errors import BadInput
from gopd.masking import mask, masked
from gopd.recipe_file import parse_recipe
from runs import Tree, held_out, merged, opd_tree, write_recipe

CANARIES = {
    "HF_TOKEN": "canary0hub0token",
    "WANDB_API_KEY": "canary0wandb" + "0" * 28,
    "EXPERT_KEY": "canary0of0the0server",
    "SOME_PASSWORD": 'canary0pass word\\with"signs',
}
CANARY = re.compile(rb"canary0", re.IGNORECASE)
HUB = "hf_" + "aB3" * 11


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def fake(teacher_folder: Path) -> Iterator[FakeServer]:
    with FakeServer(teacher_folder, "expert") as server:
        server.key = CANARIES["EXPERT_KEY"]
        yield server


@pytest.fixture
def tree(fake: FakeServer, tmp_path: Path, student_folder: Path, teacher_folder: Path) -> Tree:
    """One step with a teacher behind a server that wants a key."""
    made = opd_tree(
        tmp_path,
        student_folder,
        {"a": teacher_folder},
        train={"steps": 1},
        checkpoint={"every": 1},
        objective={"reward_scale": 1.0},
        validation=held_out(tmp_path, 2, ("a",)),
    )
    made["teachers"]["a"]["server"] = {
        "url": fake.url,
        "name": "expert",
        "retries": 0,
        "api_key_env": "EXPERT_KEY",
    }
    return made


def leaks(folder: Path) -> list[str]:
    """Files with a canary in their bytes, or in the texts of a Parquet file."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    read = {
        path: repr(pq.read_table(path).to_pylist()).encode()
        if path.suffix == ".parquet"
        else path.read_bytes()
        for path in files
    }
    return [str(path) for path, content in read.items() if CANARY.search(content)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET https://me:canary0@host:1/v1 failed", "GET https://***@host:1/v1 failed"),
        ("https://canary0@host/a?b=c@d", "https://***@host/a?b=c@d"),
        ("http://host/a?x=1&api_key=canary0&y=2", "http://host/a?x=1&api_key=***&y=2"),
        ("http://host/?access_token=canary0", "http://host/?access_token=***"),
        ("Authorization: Bearer canary0canary0", "Authorization: Bearer ***"),
        (f"token {HUB}.", "token ***."),
        ("sk-proj-canary0canary0canary0", "***"),
        ("the value canary0hub0token of HF_TOKEN", "the value *** of HF_TOKEN"),
        # not secrets
        (
            "mail me@host, keys=3, step-00000001, task-force",
            "mail me@host, keys=3, step-00000001, task-force",
        ),
        ("http://host:8000/v1?page=2", "http://host:8000/v1?page=2"),
        ("https://github.com/a/b/blob/main/c@d", "https://github.com/a/b/blob/main/c@d"),
    ],
)
def test_what_is_masked_and_what_is_not(text: str, shown: str) -> None:
    assert mask(text, {"HF_TOKEN": "canary0hub0token", "PATH": "mail me@host", "SHORT_KEY": "value"}) == shown


def test_longer_secrets_go_first_and_trees_keep_their_form() -> None:
    environment = {"A_KEY": "canary0x", "B_KEY": "canary0xcanary0"}
    tree = {"a": ("canary0xcanary0", 1), "b": [{"c": "canary0x"}], "d": None}
    assert masked(tree, environment) == {"a": ("***", 1), "b": [{"c": "***"}], "d": None}


@pytest.mark.usefixtures("planted")
def test_a_run_with_its_report_and_model_card_shows_no_secret(
    fake: FakeServer, tree: Tree, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", merged(tree, {"tracking": {"trackers": ["tensorboard"]}}))
    run = tmp_path / "runs" / "run"
    assert cli.main(["train", str(recipe)]) == 0
    assert cli.main(["train", str(recipe), "--resume"]) == 0, "a run that needs a key goes on"
    assert cli.main(["report", str(run), "--to", str(tmp_path / "runs" / "report.html")]) == 0
    assert cli.main(["plan", str(recipe), "--device", "cpu"]) in (0, 1)
    assert fake.requests["/v1/completions"] > 0, "the server let nobody in"
    assert (run / "student" / "README.md").exists() and (run / "recipe.yaml").exists()
    assert leaks(tmp_path) == []
    assert not CANARY.search("".join(capfd.readouterr()).encode())


SECRETS: list[Tree] = [
    {"student": {"model": "https://me:canary0@hub/model"}},
    {"teachers": {"a": {"server": {"url": "http://me:canary0@host:1"}}}},
    {"teachers": {"a": {"server": {"url": "me:canary0@host:1"}}}},
    {"teachers": {"a": {"server": {"url": "http://host:1?api_key=canary0"}}}},
    {"teachers": {"a": {"server": {"api_key": "canary0"}}}},
    {"teachers": {"a": {"server": {"name": "sk-proj-canary0canary0canary0"}}}},
    {"data": {"files": ["x.jsonl", "https://host/x.jsonl?token=canary0"]}},
    {"student": {"view": {"system": f"you know {CANARIES['SOME_PASSWORD']}"}}},
    {"student": {"view": {"chat_template_kwargs": {"deep": {"er": [CANARIES["HF_TOKEN"]]}}}}},
]


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("change", SECRETS, ids=str)
def test_a_recipe_with_a_secret_is_refused_by_the_name_of_its_key(
    change: Tree, tree: Tree, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", merged(tree, change))
    for command in (["train", str(recipe), "--debug"], ["doctor", str(recipe)]):
        assert cli.main(command) == 2
    recipe.unlink()
    said = "".join(capfd.readouterr())
    assert not CANARY.search(said.encode()), said
    assert dotted(change) in said
    assert leaks(tmp_path) == [] and not (tmp_path / "runs").exists()


def dotted(change: Any) -> str:
    if not isinstance(change, dict):
        return ""
    ((key, value),) = change.items()
    return f"{key}.{dotted(value)}".rstrip(".")


def test_a_recipe_made_in_python_is_looked_at_too(tree: Tree) -> None:
    recipe = parse_recipe(tree)
    with pytest.raises(ValueError, match=r"token in student\.model") as caught:
        type(recipe)(**{**dict(recipe), "student": recipe.student.model_copy(update={"model": HUB})})
    assert "hf_" not in str(caught.value).partition("[type=")[0]


@pytest.mark.usefixtures("planted")
def test_a_server_that_repeats_the_key_in_its_refusal(
    fake: FakeServer,
    tree: Tree,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake.key = "another"
    monkeypatch.setenv("EXPERT_LOGIN", "canary0login")  # a name that tells nothing
    tree["teachers"]["a"]["server"]["api_key_env"] = "EXPERT_LOGIN"
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    assert cli.main(["train", str(recipe), "--debug"]) == 2
    said = "".join(capfd.readouterr())
    assert "Unauthorized: Bearer ***" in said and not CANARY.search(said.encode())
    with pytest.raises(BadInput) as caught:
        loop.train(parse_recipe(tree))
    assert "Unauthorized" in str(caught.value) and "canary0" not in str(caught.value)


@pytest.mark.usefixtures("planted")
def test_a_traceback_on_the_screen_and_in_its_file(
    tree: Tree, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("cannot reach https://me:canary0@host/?sig=canary0, " + " ".join(CANARIES.values()))

    monkeypatch.setattr(loop, "train", fail)
    recipe = write_recipe(tmp_path / "recipe.yaml", tree)
    assert cli.main(["train", str(recipe), "--debug"]) == 1
    said = capfd.readouterr().err
    assert "Traceback" in said and "https://***@host/?sig=***" in said and not CANARY.search(said.encode())
    kept = Path(re.findall(r"report it with (\S+),", said)[0])
    assert "https://***@host/?sig=***" in kept.read_text() and not CANARY.search(kept.read_bytes())
    kept.unlink()


def test_a_report_of_a_run_folder_from_elsewhere(tree: Tree, tmp_path: Path) -> None:
    tree["student"]["model"] = "https://me:canary0@hub/model"
    run = tmp_path / "foreign"
    run.mkdir()
    write_recipe(run / "recipe.yaml", tree)
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0}) + "\n")
    assert cli.main(["report", str(run), "--to", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_bytes()
    assert b"***@hub/model" in page and not CANARY.search(page)


SCRIPT = """export HF_TOKEN=canary0hub0token
export MY_API_KEY="canary0mine"
python3 -m verl.trainer.main_ppo data.train_files=a.parquet actor_rollout_ref.model.path=m \\
  algorithm.adv_estimator=grpo trainer.total_training_steps=5 actor_rollout_ref.rollout.n=2 \\
  +trainer.token=$HF_TOKEN +some.thing=$MY_API_KEY \\
  +other.url=https://me:canary0@host/x
"""


@pytest.mark.parametrize("options", [[], ["--json"], ["--to", "TO"]])
def test_import_verl_of_a_script_that_holds_secrets(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script, target = tmp_path / "run.sh", tmp_path / "to.yaml"
    script.write_text(SCRIPT)
    words = [str(target) if word == "TO" else word for word in options]
    assert cli.main(["import-verl", str(script), *words]) == 0
    said = "".join(capfd.readouterr()) + (target.read_text() if target.exists() else "")
    assert "some.thing" in said and not CANARY.search(said.encode()), said
