"""Runs `gopd` in forked processes, so that tests which kill runs pay for importing PyTorch once.

`Forks` starts a server (this file as a program) that has everything imported; a forked run then differs from a
fresh process by nothing but the time to start.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")
"""Audit events that change the disk; opening a file for writing is one too."""


class Forks:
    """A server of forked runs, one at a time; `preload` is a library to load before all others."""

    def __init__(self, preload: Path | None = None) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | ({"LD_PRELOAD": str(preload)} if preload else {}),
        )

    def start(self, *arguments: str | Path, output: Path, **options: Any) -> int:
        """Starts `gopd ARGUMENTS…`; returns its process id. Its output goes to a file.

        `die_at=n`: it kills itself just before its n-th change of a file. `largest=n`: no file may exceed n bytes.
        `arm=[folder, log, n, fault]`: what `chaos/faults.c`, preloaded, does.
        """
        request = {"arguments": [*map(str, arguments)], "output": str(output), **options}
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._line())

    def wait(self) -> int:
        """The exit code of the run that was started; minus the signal's number if killed."""
        return int(self._line())

    def run(self, *arguments: str | Path, output: Path, **options: Any) -> int:
        """Starts a run and waits for its exit code."""
        self.start(*arguments, output=output, **options)
        return self.wait()

    def kill_after(self, seconds: float, *arguments: str | Path, output: Path) -> int:
        """Starts a run, kills its process group by SIGKILL after so many seconds (it may have ended); its exit code."""
        pid = self.start(*arguments, output=output)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        return self.wait()

    def close(self) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def _line(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


def serve() -> None:
    import peft  # noqa: F401
    import torch
    import torch.utils.tensorboard
    from transformers import Qwen3ForCausalLM  # noqa: F401

    import gopd.cli
    import gopd.loop

    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            if "die_at" in request:
                die_at(request["die_at"])
            if "largest" in request:
                resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"],) * 2)
            if "arm" in request:
                folder, log, number, fault = request["arm"]
                library = ctypes.CDLL(None)
                library.arm(folder.encode(), log.encode(), ctypes.c_long(number), fault.encode())
            code = gopd.cli.main(request["arguments"])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)  # whichever of the two comes first
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def die_at(count: int) -> None:
    """This process kills itself just before its `count`-th change of a file."""
    left = [count]

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes or event in CHANGES:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


if __name__ == "__main__":
    serve()
