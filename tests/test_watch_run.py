"""Following a run: what its folder gets while it is watched, played by the watcher's own pauses."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

import gopd
from conftest import MakeModel
from gopd import cli
from gopd.console import Display
from gopd.errors import BadInput
from gopd.recipe_file import parse_recipe
from gopd.report import watch as watching
from gopd.report.watch import watch
from runs import held_out, opd_tree

Act = Callable[[], None]


@pytest.fixture(scope="module")
def finished(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    tree = opd_tree(folder, make_model(0), {"a": make_model(1)}, validation=held_out(folder, 2, every=2))
    return gopd.train(parse_recipe(tree))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """The finished run before its first step."""
    copy = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(copy / "student")
    for name in ("metrics.jsonl", "validation.jsonl"):
        (copy / name).write_text("")
    return copy


def seen(run: Path, acts: list[Act], every: float = 0.0) -> list[str]:
    """What is said while one act after the other happens to the folder, and then the run is finished."""
    screen = io.StringIO()

    def happen() -> Iterator[None]:
        for act in acts:
            act()
            yield
        (run / "student").mkdir()
        yield

    story = happen()
    watch(run, Display(Console(file=screen, width=200)), every=every, wait=lambda _: next(story))
    return screen.getvalue().splitlines()


def append(run: Path, finished: Path, name: str, *numbers: int) -> Act:
    lines = (finished / name).read_text().splitlines(keepends=True)

    def act() -> None:
        with (run / name).open("a") as file:
            file.writelines(lines[n] for n in numbers)

    return act


def cut(run: Path, name: str, lines: int) -> Act:
    def act() -> None:
        kept = (run / name).read_text().splitlines(keepends=True)[:lines]
        (run / name).write_text("".join(kept))

    return act


def starts(shown: list[str]) -> list[str]:
    return [line.split("  ")[0] for line in shown if not line.startswith(("│", "┃", "┏", "┡", "└"))]


def test_steps_and_validations_are_shown_as_they_come(run: Path, finished: Path) -> None:
    shown = seen(
        run,
        [
            append(run, finished, "validation.jsonl", 0),
            append(run, finished, "metrics.jsonl", 0),
            append(run, finished, "metrics.jsonl", 1, 2),
            append(run, finished, "validation.jsonl", 1),
        ],
    )
    first = json.loads((finished / "metrics.jsonl").read_text().splitlines()[0])
    assert f"KL {first['kl_to_target']:.3g}" in next(line for line in shown if line.startswith("step 1/3"))
    assert [line for line in starts(shown) if not line.startswith("warning: ")] == [
        f"following {run}: step 0 of 3",
        "validation: student, step 0",
        "step 1/3",
        "step 2/3",
        "step 3/3",
        "validation: student, step 2",
        "accuracy (95% interval)",
        f"this run is finished; its student is in {run / 'student'}",
    ]
    assert any("student after" in line for line in shown)


def test_a_torn_line_waits_for_its_rest_and_a_resumed_run_goes_back(run: Path, finished: Path) -> None:
    line = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)[0]

    def write(text: str) -> Act:
        def act() -> None:
            (run / "metrics.jsonl").write_text(text)

        return act

    shown = seen(
        run,
        [
            write(line[:20]),
            write(line),
            append(run, finished, "metrics.jsonl", 1),
            cut(run, "metrics.jsonl", 1),
            append(run, finished, "metrics.jsonl", 1),
        ],
    )
    told = [s for s in starts(shown) if s.startswith(("step", "the run"))]
    back = "the run has gone back to its checkpoint: step 1 of 3"
    assert told == ["step 1/3", "step 2/3", back, "step 2/3"]


def test_silence_is_said_once(run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "QUIET_SECONDS", -1.0)
    monkeypatch.setattr(watching, "QUIET_STEPS", 0)

    def quiet() -> None:
        pass

    shown = seen(run, [quiet, quiet, append(run, finished, "metrics.jsonl", 0), quiet, quiet])
    assert sum("no new step for" in line for line in shown) == 2, "before the first step, and after it"


def test_the_report_is_kept_up_to_date(run: Path, finished: Path) -> None:
    pytest.importorskip("vl_convert")
    sizes = list[str]()

    def look() -> None:
        sizes.append((run / "report.html").read_text())

    shown = seen(run, [look, append(run, finished, "metrics.jsonl", 0, 1, 2), look], every=1e-9)
    assert shown[-1] == f"report: {run / 'report.html'}"
    last = (run / "report.html").read_text()
    kl = json.loads((finished / "metrics.jsonl").read_text().splitlines()[2])["kl_to_target"]
    figure = f"{kl:.4g}"
    assert figure not in sizes[0] and figure in last


def test_what_cannot_be_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="is not a run folder"):
        watch(tmp_path, Display(), every=0)
    assert cli.main(["watch", str(tmp_path), "--every", "-1"]) == 2
    assert "--every -1: expected seconds" in capsys.readouterr().err
