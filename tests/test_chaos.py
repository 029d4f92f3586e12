"""Crashes on purpose, in short: kills, failing writes and the order of writes; `make chaos` does the whole."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.cases import OUT, Case, make_cases, new_trial
from chaos.faults import Call, build_layer, spoil, watch
from chaos.kills import kill_at_moments, kill_in_calls
from chaos.order import faults
from chaos.run import REDONE
from forks import Forks
from gopd.errors import RunFailed
from gopd.files import append

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler for the failing file system"
)

Watched = dict[str, tuple[Case, dict[str, Any], list[Call]]]


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    server = Forks(build_layer(tmp_path_factory.mktemp("layer")))
    yield server
    server.close()


@pytest.fixture(scope="module")
def watched(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Cases with what they give undisturbed, and the calls they make for it."""
    folder = tmp_path_factory.mktemp("cases")
    cases = {case.name: case for case in make_cases(folder)}
    chosen = [cases[name] for name in ("opd", "generate", "eval", "merge")]
    return {case.name: (case, *watch(case, forks, folder / "whole" / case.name)) for case in chosen}


@pytest.mark.parametrize("name", ["opd", "generate", "eval", "merge"])
def test_what_is_promised_was_forced_to_the_disk_before(watched: Watched, name: str) -> None:
    calls = watched[name][2]
    assert faults(calls, REDONE if name == "eval" else ()) == []
    assert sum(call.name == "rename" for call in calls) > 0


def test_the_check_of_the_order_sees_every_force_that_is_left_out(watched: Watched) -> None:
    """An oracle for the checker: without any one of the calls that force a file or folder, something is wrong."""
    calls = watched["opd"][2]
    final = [c for c in calls if c.name == "fsync" and not c.path.startswith("/.")]
    needless = [c for c in final if faults([other for other in calls if other is not c]) == []]
    assert len(needless) < len(final) / 4, needless


@pytest.mark.parametrize("name", ["opd", "generate", "eval", "merge"])
def test_killed_at_random_a_command_ends_as_if_never_killed(
    watched: Watched, forks: Forks, tmp_path: Path, name: str
) -> None:
    case, whole, calls = watched[name]
    assert kill_in_calls(case, forks, tmp_path / "trial", whole, random.Random(3), len(calls) // 2, 2) > 0


def test_killed_at_random_moments_training_ends_as_if_never_killed(
    watched: Watched, forks: Forks, tmp_path: Path
) -> None:
    case, whole, _ = watched["opd"]
    assert kill_at_moments(case, forks, tmp_path / "trial", whole, random.Random(0), 0.5, 2) > 0


def place(calls: list[Call], name: str, end: str) -> int:
    """The number of the first such call on a path that ends so."""
    return next(call.number for call in calls if call.name == name and call.path.endswith(end))


@pytest.mark.parametrize(
    ("name", "call", "end", "fault"),
    [
        ("opd", "mkdir", "/validation", "ENOSPC"),
        ("opd", "write", "/metrics.jsonl", "FULL"),
        ("opd", "write", "/.student.tmp/tokenizer.json", "FULL"),
        ("opd", "fsync", "/optimizer.safetensors", "EIO"),
        ("opd", "rename", "/step-00000001", "EIO"),  # superseded, and no checkpoint comes after
        ("generate", "mkdir", "/parts", "ENOSPC"),
        ("eval", "write", "/verdicts.jsonl", "FULL"),
        ("eval", "unlink", "/verdicts.jsonl", "EIO"),
        ("merge", "sendfile", "/tokenizer.json", "ENOSPC"),
    ],
)
def test_a_write_that_fails_is_one_clear_line_and_the_command_goes_on(
    watched: Watched, forks: Forks, tmp_path: Path, name: str, call: str, end: str, fault: str
) -> None:
    case, whole, calls = watched[name]
    number = place(calls, call, end)
    assert spoil(case, forks, tmp_path / "trial", whole, number, fault) == "refused"


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_tracker_whose_writes_fail_late_is_one_clear_line_too(
    watched: Watched, forks: Forks, tmp_path: Path, call: str
) -> None:
    """TensorBoard writes in a thread of its own, which by itself would print a traceback."""
    case, whole, calls = watched["opd"]
    later = [c.number for c in calls if c.name == call and "/tensorboard/" in c.path][2]
    assert spoil(case, forks, tmp_path / "trial", whole, later, "ENOSPC") == "refused"
    assert "b'" not in (tmp_path / "trial" / "log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("call", "end"), [("rename", "/.settings.json.tmp"), ("unlink", "-000000000.parquet")]
)
def test_generate_killed_before_it_is_a_folder_of_its_own_or_while_parts_go_leaves_nothing(
    watched: Watched, forks: Forks, tmp_path: Path, call: str, end: str
) -> None:
    case, whole, calls = watched["generate"]
    number, trial = place(calls, call, end), new_trial(tmp_path / "trial")
    arm = [str(trial / OUT), str(trial / "calls"), number, "KILL"]
    assert forks.run(*case.words(trial), output=trial / "log", arm=arm) == -9
    assert forks.run(*case.words(trial), "--resume", output=trial / "log") == 0, (trial / "log").read_text()
    assert case.result(trial) == whole


def test_a_line_that_does_not_fit_on_the_disk_leaves_the_file_as_it_was(
    tmp_path: Path,
) -> None:
    path = tmp_path / "samples.jsonl"
    append(path, b"one\n")
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (7, hard))
    try:
        with pytest.raises(RunFailed, match="File too large"):
            append(path, b"another\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    append(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
