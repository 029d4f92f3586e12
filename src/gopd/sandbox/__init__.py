"""Running untrusted Python in a process of its own: kept apart from the machine, and within limits.

Always: a fresh empty working folder; an environment with nothing of the caller's in it; the bare interpreter with the
standard library only (no site-packages); limits on address space, CPU time, file size and open files, no core
dumps; a wall-clock limit; a cap on what it may print; no process of it survives the run, nor a zombie of one.

With bubblewrap and user namespaces (`namespaces`): no network; no files but the system's libraries and Python,
read-only; no other process in sight; user nobody; the working folder is memory of its own; a system call filter
forbids new processes (threads are allowed), sockets, changes of owners, modes, times and attributes of files, and the
parts of the kernel that programs do not need. Without
user namespaces (`landlock`): the process confines itself by Landlock and a stricter filter. With neither nothing is
run, unless `allow_unsandboxed` was called: then the limits are all there is, new processes escape them, and the program
can do whatever the user can.

Not protected against: a fault of the kernel itself; telling something of the machine (processor, load, time); many
thousands of threads by bare system calls, unless with `namespaces` and not as root; with `landlock` also asking
whether a path exists, and filling the disk with many small files until the run ends.

Needs Linux. `docs/evaluation.md` says more.
"""

from __future__ import annotations

import functools
import platform
import threading
import warnings

from gopd.errors import BadInput, RunFailed
from gopd.sandbox import seccomp
from gopd.sandbox.layers import Isolation
from gopd.sandbox.process import Limits, Outcome, Status, launch

__all__ = ["Isolation", "Limits", "Outcome", "Status", "allow_unsandboxed", "isolation", "run"]

_DEFAULT = Limits()
_LOCK = threading.Lock()
_unsandboxed_allowed = False


def run(code: str, *, stdin: bytes = b"", limits: Limits = _DEFAULT) -> Outcome:
    """Runs `code` as the main program of a fresh interpreter and returns how it ended.

    The program reads `stdin` as a file, then end of file. String hashing is seeded with 0, so that a program
    that iterates over sets prints the same every time. Never raises for what the program does; safe to call from
    several threads at once. Raises BadInput where programs cannot be kept apart from the machine, RunFailed when the
    sandbox does not start though it did before.
    """
    return launch(isolation(), code, stdin, limits)


def isolation() -> Isolation:
    """What keeps programs apart here, found by trying, once. Warns when it is not namespaces.

    Raises BadInput when there is nothing and `allow_unsandboxed` was not called.
    """
    with _LOCK:
        found, missing = _probe()
    if found == "none" and not _unsandboxed_allowed:
        raise BadInput(
            f"programs cannot be kept apart from this machine ({'; '.join(missing)}), and they are not run otherwise; "
            "install bubblewrap where user namespaces are on, or, if the programs are harmless, allow it by "
            "--allow-unsandboxed (gopd eval, gopd grade) or train.allow_unsandboxed=true (a recipe)"
        )
    return found


def allow_unsandboxed() -> None:
    """From now on programs are run even where nothing but limits holds them; for the whole process."""
    global _unsandboxed_allowed
    _unsandboxed_allowed = True


@functools.cache
def _probe() -> tuple[Isolation, list[str]]:
    """The best isolation that works, and why better ones do not."""
    if platform.machine() not in seccomp.MACHINES:
        return "none", [f"there is no system call filter for processor {platform.machine()}"]
    missing: list[str] = []
    layers: tuple[Isolation, ...] = ("namespaces", "landlock")
    for layer in layers:
        try:
            outcome = launch(layer, "print(1)", b"", _DEFAULT)
        except (OSError, RunFailed) as error:
            missing.append(f"{layer}: {error}")
            continue
        if outcome.stdout != b"1\n":
            missing.append(f"{layer}: {outcome.stderr.decode('utf-8', 'replace').strip()}")
            continue
        if missing:
            warnings.warn(
                f"programs run without namespaces of their own ({missing[0]}); Landlock, a system call filter and "
                "limits hold them instead",
                stacklevel=4,
            )
        return layer, missing
    return "none", missing
