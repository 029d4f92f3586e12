"""Power loss: whether what a finished write promises was forced to the disk before it was promised.

The model is POSIX's, harsher than any journalling file system: what is written to a file is safe once that file is
forced to the disk, and a name, made or changed, once its folder is. From the calls of an undisturbed run `faults` shows
every moment at which a power loss could leave a final name with half its content, or a later write without an earlier.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from chaos.faults import Call

SAFETENSORS = re.compile(r".*/\.tmp\w{6}")
"""What safetensors writes to, and then renames by a call that bypasses libc: the first of these in a folder stands for
a `.safetensors` file that is forced to the disk and that nobody wrote."""
TRACKER = "tensorboard"
"""The folder of an outside tracker, whose newest lines may be lost: metrics.jsonl has them."""


def faults(calls: Sequence[Call], redone: Iterable[str] = ()) -> list[str]:
    """What is wrong, a line each; none for calls that keep the order. `redone`: names of files that may be lost.

    At every rename into a final name: the content beneath it is forced to the disk, and so are all files under final
    names and the names themselves. After it, its own name is before anything else is changed but for clearing away.
    """
    disk, wrong = _Disk(set(redone)), []
    for call in calls:
        if call.result < 0:
            continue
        if call.name == "rename" and not _hidden(call.other):
            wrong += [
                f"{call.number}: {call.other} is there before {what}" for what in disk.unsafe_below(call.path)
            ]
            wrong += [f"{call.number}: {call.other} is there, and not {what}" for what in disk.unsafe()]
        disk.take(call)
    return wrong + [f"at the end: not {what}" for what in disk.unsafe()]


class _Disk:
    """Files with content, and folders with names, that a power loss could take."""

    def __init__(self, redone: set[str]) -> None:
        self.redone = redone
        self.written: set[str] = set()
        self.there: set[str] = set()
        self.content: set[str] = set()
        self.names: set[str] = set()
        """Paths whose entry in their folder is not forced to the disk."""

    def take(self, call: Call) -> None:
        if call.name == "open":
            if call.path not in self.there:
                self.names.add(call.path)
            self.there.add(call.path)
            if call.other == "trunc":
                self.content.add(call.path)
        elif call.name in ("write", "pwrite", "writev", "sendfile", "ftruncate", "fallocate"):
            self.content.add(call.path)
            self.written.add(call.path)
        elif call.name in ("mkdir", "link"):
            self.names.add(call.path)
        elif call.name in ("fsync", "fdatasync"):
            self._forced(call.path)
            self.names = {name for name in self.names if str(PurePath(name).parent) != call.path}
        elif call.name in ("unlink", "rmdir"):
            self.content.discard(call.path)
            self.names.discard(call.path)
            self.there.discard(call.path)
        elif call.name == "rename":
            for kept in (self.content, self.names):
                below = {name for name in kept if _below(name, call.path)}
                kept -= {name for name in kept if _below(name, call.other)} | below
                kept |= {call.other + name[len(call.path) :] for name in below}
            self.names.add(call.other)
            self.there |= {call.other}
            self.there -= {call.path}

    def _forced(self, path: str) -> None:
        folder = PurePath(path).parent
        if PurePath(path).suffix == ".safetensors" and path not in self.written:
            path = next(
                (
                    n
                    for n in sorted(self.content)
                    if SAFETENSORS.fullmatch(n) and PurePath(n).parent == folder
                ),
                path,
            )
            self.names.discard(path)
        self.content.discard(path)

    def unsafe_below(self, path: str) -> list[str]:
        """Under a name that is about to become final."""
        content = [f"the content of {name}" for name in sorted(self.content) if _below(name, path)]
        return content + [f"the name {n}" for n in sorted(self.names) if _below(n, path) and n != path]

    def unsafe(self) -> list[str]:
        """Under final names."""
        content = [f"the content of {name}" for name in sorted(self.content) if self._final(name)]
        return content + [f"the name {name}" for name in sorted(self.names) if self._final(name)]

    def _final(self, path: str) -> bool:
        parts = PurePath(path).parts
        return not _hidden(path) and parts[-1] not in self.redone and TRACKER not in parts


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _hidden(path: str) -> bool:
    return any(part.startswith(".") for part in PurePath(path).parts)
