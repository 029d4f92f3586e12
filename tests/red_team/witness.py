"""What is laid out for attack programs to reach, and what is seen from outside after them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import secrets
import shutil
import signal
import socket
import string
import struct
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gopd
from gopd import sandbox
from gopd.sandbox import Isolation, Limits, Outcome
from gopd.sandbox.process import launch
from gopd.verify import code
from red_team.attack import Attack

_LIBC = ctypes.CDLL(None, use_errno=True)
_SUBREAPER, _IS_SUBREAPER, _REMOVE, _GET_FLAGS = 36, 37, 0, 0x80086601
_CREATE_OWN = 0o1600
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")
_PLANTED = ("/", "/tmp", "/var/tmp", "/dev/shm", "/dev", "/run", "/etc/cron.d", "/etc/profile.d")
_SECONDS_TO_VANISH = 20.0
_MOST_GROWTH = 1 << 29  # bytes that grading one response may cost the grader


class World:
    """Canaries of one test: use as a context. `play` runs an attack; `found` says what it did, in words."""

    def __init__(self, isolation: Isolation) -> None:
        self.isolation = isolation
        self.secret = secrets.token_hex(16)
        self.mark = f"red-team-{secrets.token_hex(6)}"
        self.expected = [secrets.randbits(40) + 0.5, *(secrets.randbits(60) | 1 << 59 for _ in range(2))]
        self.outcomes: list[Outcome] = []

    def __enter__(self) -> World:
        with ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="red-team-"))
            stack.callback(shutil.rmtree, self.folder)
            self.temporary = self.folder / "temporary"
            (self.temporary / "neighbour").mkdir(parents=True)
            (self.temporary / "neighbour" / "answer").write_text(self.secret)
            self.secret_file = self.folder / "secret"
            self.secret_file.write_text(self.secret)
            with contextlib.suppress(OSError):
                os.setxattr(self.secret_file, "user.secret", self.secret.encode())
            stack.enter_context(_replaced(tempfile, "tempdir", str(self.temporary)))
            stack.enter_context(_replaced(sandbox, "run", self._run))
            os.environ[self.mark] = self.secret
            stack.callback(os.environ.pop, self.mark)
            self._listen(stack)
            self._allocate(stack)
            before = ctypes.c_int()
            _LIBC.prctl(_IS_SUBREAPER, ctypes.byref(before), 0, 0, 0)
            _LIBC.prctl(_SUBREAPER, 1, 0, 0, 0)  # what loses its parent becomes a child of ours, and is seen
            stack.callback(_LIBC.prctl, _SUBREAPER, before.value, 0, 0, 0)
            self.victim = subprocess.Popen(["sleep", "100000"], start_new_session=True)
            self.others = set(children())
            stack.callback(self.victim.wait)
            stack.callback(self.victim.kill)
            self.library = str(Path(os.__file__).resolve())
            self.facts = self._facts()
            launch(self.isolation, "pass", b"", Limits())  # whatever is made once is made now
            self.settle()
            self._close = stack.pop_all().close
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def settle(self) -> None:
        """Takes what is there now for what was there before."""
        self.before, self.memory = self._state(), _memory()

    def _listen(self, stack: ExitStack) -> None:
        def listening(family: int, kind: int, address: Any) -> socket.socket:
            one = stack.enter_context(socket.socket(family, kind))
            one.bind(address)
            if kind == socket.SOCK_STREAM:
                one.listen()
            one.setblocking(False)
            return one

        self.listeners = [
            listening(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            listening(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            listening(socket.AF_UNIX, socket.SOCK_STREAM, str(self.folder / "stream")),
            listening(socket.AF_UNIX, socket.SOCK_DGRAM, str(self.folder / "datagram")),
            listening(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{self.mark}"),
            listening(socket.AF_UNIX, socket.SOCK_DGRAM, f"\0{self.mark}-datagram"),
        ]

    def _allocate(self, stack: ExitStack) -> None:
        """Memory, a queue and a semaphore of System V, which any process of the user may reach by number."""
        self.key = secrets.randbits(30)
        self.segment = _LIBC.shmget(self.key, 4096, _CREATE_OWN)
        self.queue = _LIBC.msgget(self.key, _CREATE_OWN)
        self.semaphore = _LIBC.semget(self.key, 1, _CREATE_OWN)
        stack.callback(_LIBC.shmctl, self.segment, _REMOVE, 0)
        stack.callback(_LIBC.msgctl, self.queue, _REMOVE, 0)
        stack.callback(_LIBC.semctl, self.semaphore, 0, _REMOVE)

    def _facts(self) -> dict[str, object]:
        tcp, udp = (one.getsockname()[1] for one in self.listeners[:2])
        return {
            **{"secret_file": self.secret_file, "folder": self.folder, "temporary": self.temporary},
            **{"mark": self.mark, "caller": os.getpid(), "victim": self.victim.pid, "tcp": tcp, "udp": udp},
            **{"unix_stream": self.folder / "stream", "unix_datagram": self.folder / "datagram"},
            **{"abstract": self.mark, "abstract_datagram": f"{self.mark}-datagram"},
            **{"shm": self.segment, "msg": self.queue, "sem": self.semaphore, "shm_key": self.key},
            **{"library": self.library, "library_flags": _flags(self.library).hex()},
            **{"home": Path.home(), "package": Path(gopd.__file__).parent, "tests": Path(__file__).parent},
        }

    def _run(self, text: str, *, stdin: bytes = b"", limits: Limits) -> Outcome:
        """Stands for `sandbox.run`: in this isolation, and what came out is kept."""
        outcome = launch(self.isolation, text, stdin, limits)
        self.outcomes.append(outcome)
        return outcome

    def play(self, attack: Attack) -> list[str]:
        """Runs it; what went wrong by its end, its own words and its output. Any thread may call it."""
        text = string.Template(attack.text).safe_substitute(self.facts)
        limits = Limits(attack.seconds, attack.cpu_seconds, attack.memory_bytes)
        start = time.monotonic()
        wrong = []
        if attack.kind == "run":
            outcome = launch(self.isolation, text, b"", limits)
            self.outcomes.append(outcome)
            end: str = outcome.status
            said = outcome.stdout + outcome.stderr
            if b"got-through" in said:
                wrong.append(f"it says: {said.decode(errors='replace')[:2000]}")
            elif end == "ok" and b"tried" not in said:
                wrong.append(f"it did not come to its end: {outcome}"[:2000])
        else:
            try:
                end = code.judge(
                    self._problem(attack), f"```python\n{text}\n```", budget=_budget(limits)
                ).reason
            except Exception as error:  # none may reach whoever grades
                end = repr(error)
        if end not in attack.ends:
            last = self.outcomes[-1] if self.outcomes else None
            wrong.append(f"it ended with {end}: {last}"[:2000])
        if time.monotonic() - start > attack.seconds + 60:
            wrong.append("it held its caller up")
        return wrong

    def _problem(self, attack: Attack) -> code.Problem:
        if attack.kind == "function":
            return code.Problem("f", ([0], [1], [2]), tuple(self.expected))
        return code.Problem(None, ("1\n", "2\n", "3\n"), tuple(f"{value}\n" for value in self.expected))

    def honest(self) -> tuple[str, str]:
        """Verdicts on a function and a program that have been told what is expected."""
        function = Attack("", "forge", "", f"def f(i): return {self.expected}[i]", "function")
        program = Attack("", "forge", "", f"print({self.expected}[int(input()) - 1])", "program")
        budget = _budget(Limits())
        first, second = (
            code.judge(self._problem(one), f"```python\n{one.source}\n```", budget=budget).reason
            for one in (function, program)
        )
        return first, second

    def found(self) -> list[str]:
        """What is not as it was, once all that was started has had time to vanish."""
        wrong = []
        deadline = time.monotonic() + _SECONDS_TO_VANISH
        while (left := set(children()) - self.others) and time.monotonic() < deadline:
            time.sleep(0.01)
        if left:
            wrong.append(f"processes are left: {left}")
        secret = [self.secret.encode(), *(str(value).encode() for value in self.expected)]
        wrong += [
            f"a secret came out: {outcome}"[:2000]
            for outcome in self.outcomes
            if any(text in outcome.stdout + outcome.stderr for text in secret)
        ]
        self.outcomes.clear()
        for listener in self.listeners:
            with contextlib.suppress(BlockingIOError):
                heard = listener.recv(99) if listener.type == socket.SOCK_DGRAM else listener.accept()
                wrong.append(f"{listener.getsockname()} heard {heard!r}")
        after = self._state()
        wrong += [
            f"{what}: {self.before[what]} became {now}"
            for what, now in after.items()
            if (now > self.before[what] if isinstance(now, int) else now != self.before[what])
        ]
        if (memory := _memory()) - self.memory > _MOST_GROWTH:
            wrong.append(f"the grader took {memory - self.memory >> 20} MB more")
        self.before, self.memory = after, memory
        return wrong

    def _state(self) -> dict[str, Any]:
        """All that no program may change, as values that can be compared; numbers may fall."""
        victim = self.victim.pid
        stdlib = Path(sysconfig.get_path("stdlib"))
        places = [Path(place) for place in (*_PLANTED, Path.home(), self.folder, self.temporary, stdlib)]
        places += [
            stdlib / "site-packages",
            stdlib / "__pycache__",
            Path(gopd.__file__).parent,
            Path(__file__).parent,
        ]
        return {
            "marked files": [str(p) for place in places for p in _marked(place, self.mark)],
            "temporary files": sorted(os.listdir(self.temporary)),
            "caller's files": [_stat(p) for p in sorted(self.folder.iterdir()) if p != self.temporary],
            "secret file": (self.secret_file.read_text(), sorted(os.listxattr(self.secret_file))),
            "devices": [_stat(path) for path in _DEVICES],
            "library": (_stat(self.library), _flags(self.library)),
            "victim": _process(victim),
            "segments": (_segment(self.segment), _queue(self.queue), _LIBC.semctl(self.semaphore, 0, 12)),
            "mounts": Path("/proc/self/mountinfo").read_text(),
            "descriptors": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
        }


def children() -> list[int]:
    """Numbers of the processes whose parent this one is, those among them that are dead and not buried."""
    return [
        int(pid)
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]


def _budget(limits: Limits) -> code.Budget:
    return code.Budget(limits, 60.0, limits, None)


@contextlib.contextmanager
def _replaced(holder: Any, name: str, value: object) -> Iterator[None]:
    before = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, before)


def _marked(place: Path, mark: str) -> list[Path]:
    try:
        return [path for path in place.iterdir() if mark in path.name]
    except OSError:  # absent, or closed to us as to the program
        return []


def _stat(path: str | Path) -> tuple[object, ...]:
    found = os.stat(path, follow_symlinks=False)
    times = () if str(path) in ("/dev/null",) else (found.st_mtime_ns,)  # everyone writes to that one
    return str(path), found.st_mode, found.st_uid, found.st_gid, found.st_size, found.st_nlink, *times


def _flags(path: str) -> bytes:
    with open(path, "rb") as file:
        try:
            return fcntl.ioctl(file, _GET_FLAGS, bytes(8))
        except OSError:
            return bytes(8)


def _process(pid: int) -> tuple[object, ...]:
    stopped = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return (
        *("stopped" if stopped in "Tt" else "alive", os.getpriority(os.PRIO_PROCESS, pid)),
        *(os.sched_getaffinity(pid), resource.prlimit(pid, resource.RLIMIT_NOFILE), signal.SIG_DFL),
    )


def _segment(number: int) -> bool:
    return bool(_LIBC.shmctl(number, 2, ctypes.create_string_buffer(512)) >= 0)


def _queue(number: int) -> int:
    """How many messages wait; -1 where the queue is gone."""
    described = ctypes.create_string_buffer(512)
    if _LIBC.msgctl(number, 2, described) < 0:
        return -1
    return int(struct.unpack_from("=Q", described, 48 + 24 + 8)[0])


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def as_json(found: dict[str, list[str]]) -> str:
    """What the attacks of a process of its own did, for who started it."""
    return json.dumps({name: wrong for name, wrong in found.items() if wrong})
