"""What an attack program is. Its payload is harmless: canaries, loopback sockets, small bombs.

A source is Python with `$name` for what the witness laid out (`World.facts`). A program prints `got-through` and how,
for each way it got through, and `tried` when it has come to its end: both are its own claim. What counts besides is
what the witness sees from outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Theme = Literal["forge", "read", "escape", "exhaust", "persist", "talk"]
Kind = Literal["run", "function", "program"]
"""Run in the sandbox; or graded, as a function to call or as a program with standard input."""

ENDED = frozenset({"ok"})
STOPPED = frozenset({"error", "timeout", "output-limit"})
ANY = ENDED | STOPPED
NOT_RIGHT = frozenset({"wrong", "error", "timeout", "output-limit"})

PRELUDE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
REFUSED = (None, -2, -3, 1, 2, 3, 9, 13, 14, 18, 22, 26, 30, 38, 40)
def call(number, *arguments):
    result = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def attempt(how, action):
    try:
        result = action()
    except OSError as error:
        # No permission, no such file, process, call or host, and the like. Others (refused by a host) got somewhere.
        print("refused" if error.errno in REFUSED else "got-through", how, error)
    except (ImportError, AttributeError, MemoryError) as error:
        print("refused", how, type(error).__name__)
    else:
        print("got-through", how, repr(result)[:200])
"""


@dataclass(frozen=True, slots=True)
class Attack:
    """One program. `ends`: statuses of the run, or reasons of the verdict, one of which must come out.

    `seconds` and `memory_bytes` limit it, `caller_grows` how much memory it may cost whoever grades it.
    """

    name: str
    theme: Theme
    tries: str
    source: str
    kind: Kind = "run"
    ends: frozenset[str] = ENDED
    seconds: float = 20.0
    cpu_seconds: int = 10
    memory_bytes: int = 1 << 28
    prelude: bool = True

    @property
    def text(self) -> str:
        """The source, after what it needs."""
        return (PRELUDE if self.prelude else "") + self.source


def attempts(name: str, theme: Theme, tries: str, setup: str = "", /, **actions: str) -> Attack:
    """An attack that makes each attempt, an expression, and none of which may get through."""
    lines = [f"attempt({how!r}, lambda: {action})" for how, action in actions.items()]
    return Attack(name, theme, tries, "\n".join([setup, *lines, "print('tried')"]))
