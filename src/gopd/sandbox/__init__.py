"""Running untrusted Python in a process of its own, within limits.

What holds the program: a fresh empty folder as working directory, removed afterwards; an environment with
nothing of the caller's in it; the bare interpreter with the standard library only (no site-packages); limits on
address space, CPU time, file size and open files, no core dumps; a wall-clock limit; a cap on what it may print.
Its whole process group is killed when it ends, however it ends, so that it leaves nothing running.

What this does NOT protect against: the program runs as the caller's own user, with no namespaces and no system
call filter. It can use the network, read any file the user can read, write outside its folder, fill the disk with
many small files, start processes (each with its own memory allowance), signal the user's other processes, and,
by starting a session of its own, outlive its group. It keeps runaway and clumsy programs in check, not hostile ones.

Needs Linux.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

Status = Literal["ok", "error", "timeout", "output-limit"]

_BOOTSTRAP = (Path(__file__).parent / "_bootstrap.py").read_text(encoding="utf-8")
_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use: `seconds` of wall clock, `cpu_seconds` per process, sizes in bytes."""

    seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 24
    output_bytes: int = 1 << 22
    open_files: int = 64


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended.

    `ok`: exit code 0; `error`: any other exit code, or a signal; `timeout`: out of wall clock or CPU time, killed;
    `output-limit`: printed more than allowed, killed. `stdout` and `stderr` hold what it printed until then,
    together at most `Limits.output_bytes`. `seconds` is wall clock. `returncode` is negative for a signal.
    """

    status: Status
    stdout: bytes
    stderr: bytes
    seconds: float
    returncode: int


_DEFAULT = Limits()


def run(code: str, *, stdin: bytes = b"", limits: Limits = _DEFAULT) -> Outcome:
    """Runs `code` as the main program of a fresh interpreter and returns how it ended.

    The program reads `stdin` as a file, then end of file. String hashing is seeded with 0, so that a program
    that iterates over sets prints the same every time. Never raises for what the program does; safe to call from
    several threads at once. See the module's docstring for what it does not protect against.
    """
    start = time.monotonic()
    with _scratch_folder() as folder, tempfile.TemporaryFile() as program, tempfile.TemporaryFile() as given:
        _fill(program, code.encode("utf-8", "surrogatepass"))
        _fill(given, stdin)
        process = subprocess.Popen(
            _command(program.fileno(), limits),
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(program.fileno(),),
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "HOME": folder, "TMPDIR": folder},
            start_new_session=True,
        )
        with process:
            try:
                passed, out, err = _watch(process, start + limits.seconds, limits.output_bytes)
            finally:
                _kill_group(process)
            returncode = process.wait()
    status = passed or _status(returncode)
    return Outcome(status, out, err, time.monotonic() - start, returncode)


def _status(returncode: int) -> Status:
    if returncode == -signal.SIGXCPU:
        return "timeout"
    return "ok" if returncode == 0 else "error"


def _command(program: int, limits: Limits) -> list[str]:
    """The bare interpreter: no site-packages, no user site, no current folder on the path, no bytecode files.

    Not `-I`, which would ignore PYTHONHASHSEED too; the environment is ours already.
    """
    last_resort_seconds = int(limits.seconds) + 2  # ends the program should this process be killed meanwhile
    numbers = (program, last_resort_seconds, limits.memory_bytes, limits.cpu_seconds, limits.file_bytes)
    flags = ("-P", "-s", "-S", "-B", "-X", "utf8", "-c", _BOOTSTRAP)
    return [sys.executable, *flags, *map(str, (*numbers, limits.open_files))]


def _watch(
    process: subprocess.Popen[bytes], deadline: float, cap: int
) -> tuple[Literal["timeout", "output-limit"] | None, bytes, bytes]:
    """Collects output until the program exits (None) or passes a limit. Leaves the program unreaped."""
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = bytearray(), bytearray()
    verdict: Literal["timeout", "output-limit"] | None = None
    with ExitStack() as stack:
        exit_signal = os.pidfd_open(process.pid)
        stack.callback(os.close, exit_signal)
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(exit_signal, selectors.EVENT_READ)
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, err)
        exited = False
        while len(out) + len(err) <= cap:
            left = 0.0 if exited else deadline - time.monotonic()
            ready = [key for key, _ in selector.select(left)]
            for key in ready:
                if key.fileobj == exit_signal:
                    exited = True
                    _kill_group(process)  # leftovers; what they printed is still in the pipes
                    selector.unregister(exit_signal)
                elif chunk := os.read(key.fd, _CHUNK):
                    key.data.extend(chunk)
                else:
                    selector.unregister(key.fileobj)
            if exited and not ready:
                break
            if not exited and time.monotonic() >= deadline:
                verdict = "timeout"
                break
        else:
            verdict = "output-limit"
    return verdict, bytes(out[:cap]), bytes(err[: max(0, cap - len(out))])


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills the program and every process in its group. It has not been reaped, so the group's id is still its own."""
    os.killpg(process.pid, signal.SIGKILL)


def _fill(file: IO[bytes], content: bytes) -> None:
    file.write(content)
    file.flush()
    file.seek(0)


@contextmanager
def _scratch_folder() -> Iterator[str]:
    """An empty folder, removed afterwards whatever the program left in it."""
    folder = tempfile.mkdtemp(prefix="gopd-sandbox-")
    try:
        yield folder
    finally:
        try:
            os.rmdir(folder)
        except OSError:
            # Not shutil.rmtree, which fails on very deep folders and on folders without permissions.
            for tool in ("rm -rf", "chmod -R u+rwX", "rm -rf"):
                subprocess.run([*tool.split(), "--", folder], check=False, stderr=subprocess.DEVNULL)
