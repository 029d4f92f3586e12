"""The command line as a user meets it: a process, its exit code and its output."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

import gopd
import gopd.merge
from conftest import MakeModel
from gopd import cli
from gopd.commands import COMMANDS, Command
from runs import lines, opd_tree, write_recipe

GOPD = [sys.executable, "-m", "gopd.cli"]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    return subprocess.run(
        [*GOPD, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd, env=environment
    )


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        done = run("--help")
        seconds.append(time.perf_counter() - started)
        assert done.returncode == 0 and "train" in done.stdout and "import-gguf" in done.stdout
    assert min(seconds) < 0.5


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, gopd.cli\ntry: gopd.cli.main(['train', '--help'])\nexcept SystemExit: pass\n"
    script += "print([m for m in ('torch', 'transformers', 'pydantic', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted" in done.stdout


def test_version_and_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (
        (["--version"], 0),
        ([], 2),
        (["trian"], 2),
        (["train"], 2),
        (["train", "r", "--x"], 2),
    ):
        with pytest.raises(SystemExit) as end:
            cli.main(arguments)
        assert end.value.code == code
    assert gopd.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_explains_itself(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command.name, "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert f"\n  gopd {command.name} " in shown, "no example"
    assert "\nexit codes: 0 " in shown and "--debug" in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["gopd", "pl"], ["plan"]),
        (["gopd", "plan", "--gp"], ["--gpus", "--gpu"]),
        (["gopd", "train", "rec"], ["recipe.yaml"]),
        (["gopd", "completion", "z"], ["zsh"]),
    ],
)
def test_bash_completes(words: list[str], expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    script = run("completion", "bash").stdout
    line = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
    script += f"\n{line}; _shtab_gopd gopd {words[-1]} {words[-2]}; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_other_shells_get_a_script_with_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Only bash is at hand to run it in."""
    assert cli.main(["completion", shell]) == 0
    shown = capsys.readouterr().out
    assert all(command.name in shown for command in COMMANDS)


def test_a_traceback_is_shown_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "no.yaml"]) == 2
    assert capsys.readouterr().err == "gopd: cannot read recipe no.yaml: No such file or directory\n"
    assert cli.main(["train", "no.yaml", "--debug"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback (most recent call last):") and "load_recipe" in shown
    assert shown.endswith("gopd: cannot read recipe no.yaml: No such file or directory\n")


def test_an_error_that_nobody_foresaw_is_one_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gopd.merge, "merge", lambda *_, **__: 1 // 0)
    assert cli.main(["merge", "a", "b", "--to", "c"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gopd: this should not have happened: ZeroDivisionError: ")
    file = Path(next(word for word in line.split() if word.startswith(tempfile.gettempdir())).rstrip(","))
    assert "1 // 0" in file.read_text()
    file.unlink()
    monkeypatch.setattr(tempfile, "tempdir", str(file))  # no folder: nothing can be kept, as on a full disk
    assert cli.main(["merge", "a", "b", "--to", "c"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("please report it with what --debug shows")


@pytest.mark.parametrize(
    "arguments",
    [
        ["r.yaml", "a.b=1", "c=2", "--resume"],
        ["r.yaml", "--resume", "a.b=1", "c=2"],
        ["--resume", "r.yaml", "a.b=1", "c=2"],
        ["r.yaml", "a.b=1", "--resume", "c=2"],
    ],
)
def test_overrides_and_options_in_any_order(arguments: list[str]) -> None:
    options = cli._parse(["train", *arguments])
    assert (options.recipe, options.overrides, options.resume) == ("r.yaml", ["a.b=1", "c=2"], True)


def test_a_run_as_a_process_writes_only_its_own_plain_lines(make_model: MakeModel, tmp_path: Path) -> None:
    student, teacher = make_model(0), make_model(1)
    recipe = write_recipe(tmp_path / "mine.yaml", opd_tree(tmp_path, student, {"a": teacher}))
    done = run(
        "train", recipe, "tracking.folder=out", "--resume", "train.steps=2", "optim.lr=1e-4", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = done.stdout.splitlines()
    assert said[0].startswith("warning: ") and "no run to resume" in said[0]
    assert said[1] == "2 steps; the run folder is out/run"
    assert [line.split("  ")[0] for line in said[2:4]] == ["step 1/2", "step 2/2"]
    unmeasured = "no validation was asked for; `gopd eval` measures the student"
    assert said[4:] == [unmeasured, "run folder: out/run"]
    metrics = lines(tmp_path / "out" / "run" / "metrics.jsonl")
    assert [entry["lr"] for entry in metrics] == [1e-4, 1e-4]


def test_bad_input_as_a_process(tmp_path: Path) -> None:
    done = run("train", tmp_path / "no.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"gopd: cannot read recipe {tmp_path / 'no.yaml'}: No such file or directory\n"


def test_gguf_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    (tmp_path / "there").mkdir()
    for file, folder, expected in (
        ("none.gguf", "new", "no file at"),
        ("text.gguf", "new", "not a GGUF file"),
        ("cut.gguf", "there", "exists; give a new folder"),
        ("cut.gguf", "new", "cut.gguf: "),
    ):
        assert cli.main(["import-gguf", str(tmp_path / file), str(tmp_path / folder)]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "new").exists()


def test_the_exported_folder_loads_after_training_through_the_package(
    make_model: MakeModel, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path / "r.yaml", opd_tree(tmp_path, make_model(0), {"a": make_model(1)}))
    folder = gopd.train(gopd.load_recipe(path, ["train.steps=1"]))
    assert AutoModelForCausalLM.from_pretrained(folder / "student").num_parameters() > 0
