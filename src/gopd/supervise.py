"""A command that is started again when the system kills it: the driver of a cluster's run."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from gopd.errors import RunFailed

SUPERVISED = "GOPD_SUPERVISED"
"""Set for the process that does the work."""
PR_SET_PDEATHSIG = 1


def supervised() -> bool:
    """Whether this process is watched by another; from now on it ends when that one does."""
    if SUPERVISED not in os.environ:
        return False
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    return True


def supervise(arguments: Sequence[str], restarts: int) -> int:
    """Runs `gopd ARGUMENTS` in a process of its own; when a signal kills that, again, with `--resume`.

    Returns its exit code. Ctrl-C is left to the process, which gets it too. Raises RunFailed after `restarts` restarts.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resume: list[str] = []
    for left in range(restarts, -1, -1):
        command = [sys.executable, "-m", "gopd.cli", *arguments, *resume]
        code = subprocess.call(command, env=os.environ | {SUPERVISED: "1"})
        if code >= 0:
            return code
        resume = [] if "--resume" in arguments else ["--resume"]
        name = signal.Signals(-code).name
        print(f"gopd: the driver was killed ({name}); {left} restarts left", file=sys.stderr, flush=True)
    raise RunFailed(
        f"the driver was killed {restarts + 1} times; go on with --resume when the cause is found"
    )
