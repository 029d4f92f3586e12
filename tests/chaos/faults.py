"""Writes that fail: each call that changes a file is found in an undisturbed run, and spoilt in turn."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.cases import OUT, Case, assert_ends_as, leftovers, new_trial, whole_checkpoints
from forks import Forks

FAULTS = {
    "write": ("FULL", "ENOSPC", "SHORT", "EIO", "EINTR"),
    "open": ("FULL", "EIO", "EINTR"),
    "mkdir": ("FULL", "EIO"),
    "ftruncate": ("FULL", "EIO", "EINTR"),
    "sendfile": ("FULL", "EIO", "EINTR"),
    "fsync": ("EIO", "ENOSPC", "EINTR"),
}
"""What can become of a call; of one that is not here, `EIO`."""
BADLY = (1, 2)
"""Exit codes of a command that the disk refused: the run failed, or cannot be begun."""


@dataclass(frozen=True)
class Call:
    """A line of the log of `faults.c`."""

    number: int
    name: str
    path: str
    other: str
    result: int


def build_layer(folder: Path) -> Path:
    """Compiles `faults.c`."""
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    command = ["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", str(source), "-o", str(library), "-ldl"]
    subprocess.run(command, check=True)
    return library


def read_calls(log: Path) -> list[Call]:
    """The calls of a run, in order."""
    rows = (line.split("\t") for line in log.read_text(encoding="utf-8").splitlines())
    return [Call(int(n), name, path, other, int(result)) for n, name, path, other, result in rows]


def watch(case: Case, forks: Forks, trial: Path) -> tuple[dict[str, Any], list[Call]]:
    """Runs a case undisturbed; what came out, and its calls."""
    new_trial(trial)
    log = trial / "log"
    code = forks.run(*case.words(trial), output=log, arm=[str(trial / OUT), str(trial / "calls"), 0, ""])
    assert code == 0, f"{case.name}: {log.read_text()}"
    assert leftovers(trial) == []
    return case.result(trial), read_calls(trial / "calls")


def spoil(case: Case, forks: Forks, trial: Path, whole: dict[str, Any], number: int, fault: str) -> str:
    """Runs a case whose call `number` is spoilt, checks what it says and leaves, and that it goes on; how it ended."""
    new_trial(trial)
    log = trial / "log"
    code = forks.run(
        *case.words(trial), output=log, arm=[str(trial / OUT), str(trial / "calls"), number, fault]
    )
    said = log.read_text(encoding="utf-8")
    where = f"{case.name}, call {number}, {fault}, exit code {code}: {said}"
    if code == 0:
        how = "unharmed"
    else:
        assert code in BADLY, where
        assert "Traceback" not in said and "should not have happened" not in said, where
        assert "gopd: " in said.splitlines()[-1], where
        how = "refused"
    whole_checkpoints(trial)
    cleaning = any(c.number == number and c.name in ("unlink", "rmdir", "rename") for c in _calls(trial))
    assert cleaning or leftovers(trial) == [], f"{where}\n{leftovers(trial)}"
    assert_ends_as(case, forks, trial, whole)
    return how


def _calls(trial: Path) -> list[Call]:
    return read_calls(trial / "calls") if (trial / "calls").exists() else []
