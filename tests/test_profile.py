from __future__ import annotations

import io
import json
from pathlib import Path
from statistics import median

import pytest
from rich.console import Console

from gopd import loop, profile
from gopd.console import Display
from gopd.cost import Limits
from gopd.errors import Interrupted
from gopd.recipe_file import parse_recipe
from runs import Tree, lines, merged, opd_tree, outcome, sft_tree

PROFILED = {"tracking": {"profile": True}}


def profiled(tree: Tree) -> tuple[str, Tree]:
    """What a profiled run prints, and its `profile.json`."""
    screen = io.StringIO()
    run = loop.train(parse_recipe(merged(tree, PROFILED)), display=Display(Console(file=screen, width=160)))
    return screen.getvalue(), json.loads((run / "profile.json").read_text())


@pytest.mark.parametrize("estimator", ["sampled", "full"])
def test_every_phase_is_held_against_the_limits(
    student_folder: Path, teacher_folder: Path, tmp_path: Path, estimator: str
) -> None:
    tree = opd_tree(tmp_path, student_folder, {"a": teacher_folder}, objective={"estimator": estimator})
    printed, entry = profiled(tree)
    assert "profile: a step's median, against" in printed and entry["steps"] == 3
    phases = {p["name"]: p for p in entry["phases"]}
    assert list(phases) == ["sample", "verify", "score", "update"]
    steps = lines(tmp_path / "runs" / "run" / "metrics.jsonl")
    limits = Limits(**entry["limits"])
    for name, phase in phases.items():
        assert phase["seconds"] == median(step[f"seconds/{name}"] for step in steps)
        assert 0 < phase["share"] <= 1.5 and phase["peak_gb"] > 0.05
        row = next(line for line in printed.splitlines() if line.startswith(f"│ {name}"))
        assert f"{phase['seconds']:.3g}" in row
        if name == "verify":
            assert phase["limit_seconds"] is None
        else:
            assert phase["limit_seconds"] >= phase["teraflop"] * 1e12 / limits.flops_per_second
            assert phase["bound"] == "overhead", "a model this small is all overhead"
    ratio = phases["score"]["teraflop"] / phases["update"]["teraflop"]
    if estimator == "sampled":
        assert ratio == pytest.approx(2 / 3), "two forwards against a forward and its backward"
    else:
        assert ratio < 0.66, "the update projects with the scorer's heads"


def test_profiling_changes_nothing_else(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    outcomes = []
    for name in ("plain", "profiled"):
        tracking = {"name": name, "profile": name == "profiled"}
        tree = opd_tree(tmp_path, student_folder, {"a": teacher_folder}, tracking=tracking)
        found = outcome(loop.train(parse_recipe(tree)))
        found["files"] = [f for f in found["files"] if f != "profile.json"]
        outcomes.append({k: v for k, v in found.items() if k != "student/README.md"})
    assert outcomes[0] == outcomes[1]
    assert not (tmp_path / "runs" / "plain" / "profile.json").exists()


def test_sft_has_one_phase(student_folder: Path, tmp_path: Path) -> None:
    _, entry = profiled(sft_tree(tmp_path, student_folder))
    assert [p["name"] for p in entry["phases"]] == ["update"]


def test_an_interrupted_run_shows_its_profile(
    student_folder: Path, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = profile.Profiler.step

    def interrupted(self: profile.Profiler, *arguments: object) -> None:
        import os
        import signal

        step(self, *arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(profile.Profiler, "step", interrupted)
    tree = opd_tree(tmp_path, student_folder, {"a": teacher_folder})
    with pytest.raises(Interrupted):
        profiled(tree)
    assert json.loads((tmp_path / "runs" / "run" / "profile.json").read_text())["steps"] == 1
