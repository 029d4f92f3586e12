"""Programs that take turns: while one works the others wait, so that two are compared on the same machine in one run.

The driver starts each program once, with everything loaded, and asks for one piece of work at a time: A B A B. A
request and its answer are one line of JSON each, over the program's standard input and output.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

Answer = dict[str, Any]


class Player:
    """The driver's end of one program."""

    def __init__(self, name: str, process: subprocess.Popen[str]) -> None:
        self.name, self._process = name, process

    def turn(self, **request: Any) -> Answer:
        """Asks for one piece of work and waits for the answer; an error when the program has ended.

        Between its turns a program is stopped, as some (vLLM) keep a core busy while they wait.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        _signal(self._process, signal.SIGCONT)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.name} ended with exit code {self._process.wait()}; its output is above"
            )
        _signal(self._process, signal.SIGSTOP)
        answer: Answer = json.loads(line)
        return answer


@contextmanager
def players(commands: Mapping[str, Sequence[str | Path]]) -> Iterator[dict[str, Player]]:
    """Starts programs, by name; they are ended on the way out."""
    with ExitStack() as stack:
        started = {}
        for name, command in commands.items():
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            process = stack.enter_context(
                subprocess.Popen(list(map(str, command)), start_new_session=True, **pipes)
            )
            stack.callback(_signal, process, signal.SIGKILL)
            started[name] = Player(name, process)
        yield started


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """To a program and all that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


class Stage:
    """A program's end. Standard output is the wire, so whatever else is printed goes to standard error."""

    def __init__(self) -> None:
        self._wire: TextIO = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def await_turn(self) -> Answer | None:
        """The next request; None when the driver is gone."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def answer(self, **answer: Any) -> None:
        """Ends the turn."""
        self._wire.write(json.dumps(answer) + "\n")
        self._wire.flush()

    def serve(self, work: Callable[..., Answer]) -> None:
        """Answers every request by `work(**request)` until the driver is gone."""
        while (request := self.await_turn()) is not None:
            self.answer(**work(**request))
