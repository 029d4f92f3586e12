"""`gopd train --cluster` in processes of its own, all of which can be found, killed, and counted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

MARK = "GOPD_RUN_MARK"
TRAIN = (sys.executable, "-m", "gopd.cli", "train")


class Run:
    """A run that is under way; what it says goes to a file. `prefix` is put before the command."""

    def __init__(
        self, output: Path, *arguments: str | Path, prefix: Sequence[str] = (), mark: str | None = None
    ) -> None:
        self.output, self.mark = output, mark or uuid.uuid4().hex
        with output.open("w") as file:
            self.process = subprocess.Popen(
                [*prefix, *TRAIN, *map(str, arguments)],
                stdout=file,
                stderr=file,
                env=os.environ | {MARK: self.mark},
            )

    def processes(self, title: str = "") -> list[int]:
        """Ids of the living processes of this run whose command line has a text in it."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes()
                ):
                    command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found += [int(entry.name)] if command and title in command else []
            except OSError:  # it has just ended
                continue
        return found

    @property
    def driver(self) -> int | None:
        """The process that drives the run; its parent, which starts it again, is `process`."""
        return next((pid for pid in self.processes("gopd.cli") if pid != self.process.pid), None)

    def said(self) -> str:
        """All it has printed."""
        return self.output.read_text()

    def wait_for(self, text: str, seconds: float = 150) -> None:
        """Until it has printed a text."""
        end = time.monotonic() + seconds
        while text not in self.said():
            assert time.monotonic() < end and self.process.poll() is None, self.said()
            time.sleep(0.1)

    def finish(self, seconds: float = 300) -> str:
        """Waits for a good end, after which nothing is left of it; returns what it said."""
        assert self.process.wait(seconds) == 0, self.said()
        end = time.monotonic() + 30
        while left := self.processes():
            assert time.monotonic() < end, f"orphans: {left}"
            time.sleep(0.2)
        return self.said()

    def close(self) -> None:
        """Kills what is left."""
        for pid in self.processes():
            kill(pid)
        self.process.wait()


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Sends a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
