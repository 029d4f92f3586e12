"""A command that is started again when the system kills it: the driver of a cluster's run."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

from gopd.errors import RunFailed

SUPERVISED = "GOPD_SUPERVISED"
"""Set for the process that does the work, and so for all that it starts on this machine; tells them from others."""
PR_SET_PDEATHSIG = 1
PATIENCE = 10.0
"""Seconds that a finished run's processes have to end by themselves."""


def supervised() -> bool:
    """Whether this process is watched by another; from now on it ends when that one does."""
    if SUPERVISED not in os.environ:
        return False
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the one above ignores it, and so did this one
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return True


def supervise(arguments: Sequence[str], restarts: int) -> int:
    """Runs `gopd ARGUMENTS` in a process of its own; when a signal kills that, again, with `--resume`.

    Returns its exit code. Ctrl-C is left to the process, which gets it too. What it started on this machine never
    outlives it. Raises RunFailed after `restarts` restarts.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    mark = uuid.uuid4().hex
    resume: list[str] = []
    for left in range(restarts, -1, -1):
        command = [sys.executable, "-m", "gopd.cli", *arguments, *resume]
        code = subprocess.call(command, env=os.environ | {SUPERVISED: mark})
        _end_leftovers(mark, PATIENCE if code >= 0 else 0.0)
        if code >= 0:
            return code
        resume = [] if "--resume" in arguments else ["--resume"]
        name = signal.Signals(-code).name
        print(f"gopd: the driver was killed ({name}); {left} restarts left", file=sys.stderr, flush=True)
    raise RunFailed(
        f"the driver was killed {restarts + 1} times; go on with --resume when the cause is found"
    )


def _end_leftovers(mark: str, patience: float) -> None:
    """Kills what a run has left behind, after so many seconds."""
    end = time.monotonic() + patience
    while (left := _marked(mark)) and time.monotonic() < end:
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _marked(mark: str) -> list[int]:
    """Processes of a run; none where the system does not tell."""
    found, wanted = [], f"{SUPERVISED}={mark}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if wanted in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found
