"""One run: starting the confined interpreter, collecting what it prints, and ending it."""

from __future__ import annotations

import ctypes
import json
import os
import select
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Literal

from gopd.errors import RunFailed
from gopd.sandbox.layers import Descriptors, Isolation, call_filter, command, most_threads

Status = Literal["ok", "error", "timeout", "output-limit"]

_LIBC = ctypes.CDLL(None)
_GET_CHILD_SUBREAPER = 37  # of prctl
_CHUNK = 65536
_START_SECONDS = 60.0
_CORE_BYTES = 1  # with 0 the machine's handler of core dumps, where it has one, would still be started


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
    together at most `Limits.output_bytes`. `seconds` is wall clock, from the program's first line on. `returncode` is
    negative for a signal.
    """

    status: Status
    stdout: bytes
    stderr: bytes
    seconds: float
    returncode: int


def launch(isolation: Isolation, code: str, stdin: bytes, limits: Limits) -> Outcome:
    """Runs `code` as `gopd.sandbox.run` does, in the given isolation. Raises RunFailed when it cannot be started."""
    with ExitStack() as stack:
        folder = stack.enter_context(_working_folder(isolation))
        starting, ready = os.pipe()
        stack.callback(os.close, starting)
        first_process = stack.enter_context(_file(b""))
        stack.callback(_bury, first_process)
        with (
            _file(code.encode("utf-8", "surrogatepass")) as program,
            _file(call_filter(isolation)) as allowed,
        ):
            given = Descriptors(program, ready, allowed, first_process)
            try:
                process = _start(isolation, stdin, limits, given, folder)
            finally:
                os.close(ready)
        stack.enter_context(process)
        try:
            started = _wait_for_start(process, starting)
            passed, out, err = _watch(process, started + limits.seconds, limits.output_bytes)
        finally:
            _kill_group(process)
        seconds = time.monotonic() - started
        returncode = process.wait()
    if isolation == "namespaces" and returncode > 128:  # as bubblewrap reports a signal
        returncode = 128 - returncode
    return Outcome(passed or _status(returncode), out, err, seconds, returncode)


def _status(returncode: int) -> Status:
    if returncode in (-signal.SIGXCPU, -signal.SIGPROF):  # of the run, and of one call of a function
        return "timeout"
    return "ok" if returncode == 0 else "error"


def _start(
    isolation: Isolation, stdin: bytes, limits: Limits, given: Descriptors, folder: str
) -> subprocess.Popen[bytes]:
    last_resort = int(limits.seconds) + 2  # ends the program should this process be killed meanwhile
    numbers = (
        *(last_resort, limits.memory_bytes, limits.cpu_seconds),
        *(limits.file_bytes, limits.open_files, _CORE_BYTES, most_threads(isolation)),
    )
    own = (given.first_process,) if isolation == "namespaces" else ()
    with _file(stdin) as standard_input:
        return subprocess.Popen(
            command(isolation, numbers, given, folder),
            stdin=standard_input,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(given.program, given.ready, given.call_filter, *own),
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "HOME": folder, "TMPDIR": folder},
            start_new_session=True,
        )


def _wait_for_start(process: subprocess.Popen[bytes], starting: int) -> float:
    """The moment at which the program began."""
    poll = select.poll()  # unlike select, for descriptors of any number
    poll.register(starting, select.POLLIN)
    if poll.poll(_START_SECONDS * 1000) and os.read(starting, 1) == b"!":
        return time.monotonic()
    _kill_group(process)
    assert process.stderr is not None
    said = process.stderr.read().decode("utf-8", "replace").strip()
    raise RunFailed(f"the sandbox could not be started: {said or 'no reason was given'}")


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


def _adopts_orphans() -> bool:
    """Whether processes that lose their parent become children of this one, as in a container that has no init."""
    subreaper = ctypes.c_int()
    _LIBC.prctl(_GET_CHILD_SUBREAPER, ctypes.byref(subreaper), 0, 0, 0)
    return os.getpid() == 1 or subreaper.value != 0


def _bury(first_process: int) -> None:
    """Reaps the namespace's first process, which bubblewrap, when it ends, leaves to whoever adopts it."""
    if (told := os.pread(first_process, 4096, 0)) and _adopts_orphans():
        with suppress(ChildProcessError):  # bubblewrap did it
            os.waitpid(json.loads(told)["child-pid"], 0)


@contextmanager
def _file(content: bytes) -> Iterator[int]:
    """A descriptor of a file in memory with this content, to be read from its start."""
    descriptor = os.memfd_create("gopd-sandbox")
    try:
        left = memoryview(content)
        while left:
            left = left[os.write(descriptor, left) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _working_folder(isolation: Isolation) -> Iterator[str]:
    """An empty folder, removed afterwards whatever the program left in it; with namespaces it is made inside."""
    if isolation == "namespaces":
        yield "/tmp"
        return
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
