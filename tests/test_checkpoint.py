"""The run folder survives kills at every moment, full disks, damage and misuse."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from gopd.checkpoint import RunFolder
from gopd.errors import BadInput, RunFailed
from gopd.files import atomic_folder, atomic_write, sweep
from gopd.recipe import Recipe
from gopd.recipe_file import load_recipe, parse_recipe, resolved_yaml


def recipe_in(folder: Path, **sections: dict[str, Any]) -> Recipe:
    tree: dict[str, Any] = {
        "student": {"model": "s"},
        "teachers": {"math": {"model": "t"}},
        "data": {"files": ["rows.jsonl"]},
        "train": {"steps": 100},
        "tracking": {"folder": str(folder), "name": "run"},
    }
    if sections.get("checkpoint", {}).get("keep_best"):
        tree["validation"] = {"files": ["held-out.jsonl"]}
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse_recipe(tree)


def save(run: RunFolder, step: int, **state: Any) -> None:
    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(b"%d" % step)

    run.save(step, write, state)


def saved_steps(run: RunFolder) -> list[int]:
    return sorted(int(p.name.removeprefix("step-")) for p in run.checkpoints.iterdir())


def leftovers(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob(".*") if p.name != ".lock"]


def run_script(script: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


WORK = """
import json, os, random, signal, sys, time
from pathlib import Path
from gopd.checkpoint import RunFolder
from gopd.files import atomic_write
from gopd.recipe_file import load_recipe

def content(step):
    return random.Random(step).randbytes(200_000)

def save(run, step):
    def write(folder):
        (folder / "sub").mkdir()
        (folder / "sub" / "weights").write_bytes(content(step))
    run.save(step, write, {"best_step": step // 3 * 3 or None, "rng": step * 7})

def check(run):
    found = run.latest()
    if found:
        step, folder, state = found
        assert (folder / "sub" / "weights").read_bytes() == content(step)
        assert state["rng"] == step * 7 and state["step"] == step, state
    for folder in run.checkpoints.iterdir():
        assert (folder / "checksums.json").exists() and (folder / "sub" / "weights").exists(), folder
    hidden = [p for p in run.path.rglob(".*") if p.name != ".lock"]
    assert not hidden, hidden
    return found[0] if found else 0

def in_child(work, *arguments):
    child = os.fork()
    if child == 0:
        work(*arguments)
        os._exit(0)
    return child
"""


def test_killed_at_random_moments_a_run_always_has_a_whole_checkpoint(tmp_path: Path) -> None:
    atomic_write(tmp_path / "r.yaml", resolved_yaml(recipe_in(tmp_path, checkpoint={"keep_best": True})))
    script = (
        WORK
        + """
def work():
    run = RunFolder.open(recipe, resume=True)
    found = run.latest()
    step = found[0] if found else 0
    while True:
        step += 1
        save(run, step)
        os.write(progress, b".")

recipe, moments, reached = load_recipe(sys.argv[1]), random.Random(0), [0]
for _ in range(15):
    saved, progress = os.pipe()
    child = in_child(work)
    os.read(saved, 1)
    time.sleep(moments.uniform(0.0, 0.06))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    run = RunFolder.open(recipe, resume=True)
    assert not run.warnings, run.warnings  # a kill damages nothing
    reached.append(check(run))
    run.close()
print(json.dumps(reached))
"""
    )
    reached = json.loads(run_script(script, tmp_path / "r.yaml"))
    assert all(a < b for a, b in itertools.pairwise(reached)), "a kill lost a checkpoint"
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) <= 4


def test_killed_before_each_change_of_a_file_a_run_goes_on(tmp_path: Path) -> None:
    """Exhaustive over start, save, replace and prune: before the n-th change, until one gets through."""
    script = (
        WORK
        + """
import shutil
from gopd.files import sweep

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}

def kill_before(change):
    counted = 0
    def hook(event, arguments):
        nonlocal counted
        if event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            counted += 1
            if counted == change:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

def start(n):
    kill_before(n)
    RunFolder.open(recipe, resume=True)

def saves(n):
    kill_before(n)
    for step in (3, 4, 4, 5):
        save(run, step)

def killed(work, n):
    return os.WIFSIGNALED(os.waitpid(in_child(work, n), 0)[1])

recipe, starts, n = load_recipe(sys.argv[1]), [], 1
folder = Path(recipe.tracking.folder) / recipe.tracking.name
while killed(start, n):
    run = RunFolder.open(recipe, resume=True)
    starts.append(run.resumed)
    assert check(run) == 0
    assert load_recipe(folder / "recipe.yaml") == recipe and (folder / "versions.json").exists()
    run.close()
    shutil.rmtree(folder)
    n += 1

run, found, n = RunFolder.open(recipe, resume=True), [], 1
while killed(saves, n):
    sweep(run.checkpoints)
    found.append(check(run))
    shutil.rmtree(run.checkpoints)
    run.checkpoints.mkdir()
    n += 1
print(json.dumps([starts, found, check(run)]))
"""
    )
    recipe = recipe_in(tmp_path, checkpoint={"keep_best": True, "keep_last": 1})
    atomic_write(tmp_path / "r.yaml", resolved_yaml(recipe))
    starts, found, last = json.loads(run_script(script, tmp_path / "r.yaml"))
    assert starts == sorted(starts), "a later kill found less of a run"
    assert set(starts) == {False, True}
    assert found == sorted(found), "a later kill found an older checkpoint"
    assert set(found) == {0, 3, 4, 5}
    assert last == 5


def test_full_disk_fails_with_the_path_and_keeps_what_was_saved(tmp_path: Path) -> None:
    atomic_write(tmp_path / "r.yaml", resolved_yaml(recipe_in(tmp_path)))
    script = """
import resource, sys
import numpy
from safetensors.numpy import save_file
from gopd.checkpoint import RunFolder
from gopd.errors import RunFailed
from gopd.files import atomic_write
from gopd.recipe_file import load_recipe

run = RunFolder.open(load_recipe(sys.argv[1]), resume=False)
run.save(1, lambda folder: save_file({"w": numpy.zeros(10)}, folder / "w.safetensors"), {})
atomic_write(run.path / "note", "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
attempts = [
    lambda: run.save(2, lambda folder: save_file({"w": numpy.zeros(100_000)}, folder / "w.safetensors"), {}),
    lambda: run.save(2, lambda folder: (folder / "w").write_bytes(bytes(100_000)), {}),
    lambda: atomic_write(run.path / "note", "x" * 100_000),
]
for attempt in attempts:
    try:
        attempt()
    except RunFailed as error:
        print(error)
"""
    out = run_script(script, tmp_path / "r.yaml").splitlines()
    places = ["checkpoints/step-00000002", "checkpoints/step-00000002", "note"]
    assert len(out) == 3
    for line, place in zip(out, places, strict=True):
        assert line.startswith(f"cannot write {tmp_path / 'run' / place}: ")
        assert "File too large" in line
        assert line.endswith("nothing that was saved before is lost")
    run = RunFolder.open(recipe_in(tmp_path), resume=True)
    assert not leftovers(run.path)
    assert run.latest() == (1, run.checkpoint(1), {"step": 1})
    assert (run.path / "note").read_text() == "old"


def test_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    run = RunFolder.open(recipe_in(tmp_path, checkpoint={"keep_last": 2, "keep_best": True}), resume=False)
    for step, best in [(10, None), (20, 20), (30, 20), (40, 20), (50, 20)]:
        save(run, step, best_step=best)
    assert saved_steps(run) == [20, 40, 50]
    save(run, 60, best_step=60)
    assert saved_steps(run) == [50, 60]


def test_without_keep_best_the_best_is_not_kept(tmp_path: Path) -> None:
    run = RunFolder.open(recipe_in(tmp_path, checkpoint={"keep_last": 1}), resume=False)
    save(run, 1, best_step=1)
    save(run, 2, best_step=1)
    assert saved_steps(run) == [2]


def flip_byte(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["weights", "state.json", "checksums.json"])
def test_a_flipped_byte_falls_back_to_the_checkpoint_before(tmp_path: Path, name: str) -> None:
    run = RunFolder.open(recipe_in(tmp_path), resume=False)
    save(run, 1, rng=[1, 2.5])
    save(run, 2)
    flip_byte(run.checkpoint(2) / name)
    assert run.latest() == (1, run.checkpoint(1), {"step": 1, "rng": [1, 2.5]})
    (warning,) = run.warnings
    assert "step-00000002" in warning


def test_a_missing_file_is_damage_and_all_damaged_is_an_error(tmp_path: Path) -> None:
    run = RunFolder.open(recipe_in(tmp_path), resume=False)
    save(run, 1)
    (run.checkpoint(1) / "weights").unlink()
    with pytest.raises(BadInput, match=r"every checkpoint is damaged.*step-00000001.*weights"):
        run.latest()


def test_a_damaged_checkpoint_passed_over_never_displaces_a_whole_one(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, checkpoint={"keep_last": 2})
    run = RunFolder.open(recipe, resume=False)
    save(run, 10)
    save(run, 20)
    flip_byte(run.checkpoint(20) / "weights")
    save(run, 12)
    assert saved_steps(run) == [10, 12]


def test_an_existing_run_needs_resume(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    first = RunFolder.open(recipe, resume=False)
    assert not first.resumed
    assert load_recipe(first.path / "recipe.yaml") == recipe
    assert json.loads((first.path / "versions.json").read_text())["python"] == sys.version.split()[0]
    with pytest.raises(BadInput, match=r"--resume.*tracking\.name"):
        RunFolder.open(recipe, resume=False)
    again = RunFolder.open(recipe, resume=True)
    assert again.resumed
    assert again.warnings == []
    assert again.latest() is None


def test_resume_refuses_a_changed_recipe_and_shows_how_it_differs(tmp_path: Path) -> None:
    RunFolder.open(recipe_in(tmp_path), resume=False)
    changed = recipe_in(tmp_path, train={"steps": 200}, optim={"lr": 0.5}, checkpoint={"keep_last": 3})
    with pytest.raises(BadInput) as caught:
        RunFolder.open(changed, resume=True)
    message = str(caught.value)
    assert "train.steps: 100 → 200" in message
    assert "optim.lr: 1e-05 → 0.5" in message
    assert "keep_last" not in message


def test_resume_takes_changes_that_cannot_touch_the_result(tmp_path: Path) -> None:
    RunFolder.open(recipe_in(tmp_path), resume=False)
    changed = recipe_in(
        tmp_path, checkpoint={"keep_last": 7}, tracking={"trackers": ["tensorboard"], "show_generations": 2}
    )
    run = RunFolder.open(changed, resume=True)
    assert run.resumed
    assert load_recipe(run.path / "recipe.yaml") == changed


def test_resume_of_nothing_or_of_a_half_made_folder_starts_anew(tmp_path: Path) -> None:
    half = tmp_path / "run"
    half.mkdir()
    (half / ".recipe.yaml.tmp").write_text("stud")
    (half / ".lock").touch()
    run = RunFolder.open(recipe_in(tmp_path), resume=True)
    assert not run.resumed
    assert "starting anew" in run.warnings[0]
    assert not leftovers(half)
    fresh = RunFolder.open(recipe_in(tmp_path / "elsewhere"), resume=True)
    assert not fresh.resumed


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("mine")
    with pytest.raises(BadInput, match="not a run folder"):
        RunFolder.open(recipe_in(tmp_path), resume=resume)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_unwritable_output_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"Not a directory.*tracking\.folder"):
        RunFolder.open(recipe_in(tmp_path / "file"), resume=False)
    with pytest.raises(RunFailed, match="nothing that was saved before is lost"):
        atomic_write(tmp_path / "file" / "x", "y")


@pytest.mark.parametrize("name", [None, "", ".", "..", "a/b"])
def test_a_run_name_is_the_name_of_a_folder(tmp_path: Path, name: str | None) -> None:
    with pytest.raises(BadInput, match=r"tracking\.name"):
        RunFolder.open(recipe_in(tmp_path, tracking={"name": name}), resume=False)


def test_other_versions_are_told_and_recorded(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    path = RunFolder.open(recipe, resume=False).path / "versions.json"
    started = {**json.loads(path.read_text()), "torch": "1.0"}
    path.write_text(json.dumps(started))
    run = RunFolder.open(recipe, resume=True)
    assert "torch 1.0 → " in run.warnings[0]
    record = json.loads(path.read_text())
    assert record["torch"] == "1.0"
    assert record["resumed_with"][0]["torch"] != "1.0"
    assert RunFolder.open(recipe, resume=True).warnings == []


def test_two_processes_cannot_write_to_one_run(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    run = RunFolder.open(recipe, resume=False)
    atomic_write(tmp_path / "r.yaml", resolved_yaml(recipe))
    script = """
import sys
from gopd.checkpoint import RunFolder
from gopd.errors import BadInput
from gopd.recipe_file import load_recipe
try:
    RunFolder.open(load_recipe(sys.argv[1]), resume=True)
    print("opened")
except BadInput as error:
    print(error)
"""
    assert "another process" in run_script(script, tmp_path / "r.yaml")
    run.close()
    assert run_script(script, tmp_path / "r.yaml") == "opened\n"


def test_atomic_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "student"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_folder(target) as folder:  # noqa: PT012
        (folder / "a").write_text("new")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "old"
    with atomic_folder(target) as folder:
        (folder / "b").write_text("new")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_sweep_puts_back_a_replaced_folder_whose_successor_never_arrived(tmp_path: Path) -> None:
    for name, text in [(".a.old", "old"), (".a.tmp", "half"), (".b.old", "old"), ("b", "new")]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(text)
    sweep(tmp_path)
    assert {p.name: (p / "x").read_text() for p in tmp_path.iterdir()} == {"a": "old", "b": "new"}


def test_weights_are_readable_to_whom_the_folder_is(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as folder:
        save_file({"w": np.zeros(1)}, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "model").iterdir()}
    (tmp_path / "any").touch()
    assert modes == {(tmp_path / "any").stat().st_mode & 0o777}
