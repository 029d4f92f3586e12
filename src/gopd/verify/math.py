r"""Grading mathematics: is the last `\boxed{}` of a response equal to the gold answer?

Numbers and identical texts are decided here, in microseconds. Everything else goes to math-verify, in one
separate process that is started on first use and killed when an expression takes too long: math-verify can hang
for ever on towers of powers, and its own time limits need the main thread.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import re
import select
import subprocess
import sys
import threading
from decimal import Decimal
from pathlib import Path

from gopd.errors import BadInput, RunFailed
from gopd.types import Reason, Verdict

SECONDS = 5.0
"""Wall-clock limit of one comparison; an answer that takes longer is wrong."""
LONGEST = 2048
"""Characters; a longer answer that is not literally the gold one is wrong."""

_START_SECONDS = 120.0
_BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+(?:\.[0-9]*)?")
_THIN_SPACE = re.compile(r"\\[!,;:]\s*")
_BARE_SQRT = re.compile(r"(?<![\\A-Za-z])sqrt(?=[\[{])")


def grade(gold: str, response: str) -> bool:
    r"""Whether the last balanced `\boxed{}` of `response` is mathematically equal to `gold`.

    `gold` is a bare answer (`72`, `\frac{1}{2}`) or has a box of its own. No box, an empty box, an answer of more
    than `LONGEST` characters, or one that takes more than `SECONDS` to compare: False. Plain decimals are compared
    exactly (`8.50` is `8.5`, `0.333` is not `0.3333`). Safe to call from any thread.

    Raises RunFailed when the math-verify process cannot be started.
    """
    return judge(gold, response).right


def judge(gold: str, response: str) -> Verdict:
    r"""As `grade`, with the reason and the content of the box."""
    answer = last_boxed(response)
    if answer is None or not _normalised(answer):
        return Verdict("no-answer", answer)
    return Verdict(_compared(_gold_answer(gold), _normalised(answer)), answer)


def equal(one: str, other: str) -> bool:
    """Whether two answers, as `Verdict.answer` has them, are mathematically equal."""
    return _compared(_normalised(one), _normalised(other)) == "right"


def _compared(want: str, got: str) -> Reason:
    if want == got:
        return "right"
    want_number, got_number = _number(want), _number(got)
    if want_number is not None and got_number is not None:
        return "right" if want_number == got_number else "wrong"
    if len(got) > LONGEST:
        return "too-long"
    return _compare(want, got)


def check_gold(gold: str) -> None:
    """Raises BadInput when there is nothing in `gold` that an answer could equal."""
    if not _gold_answer(gold):
        raise BadInput(f"math ground truth {gold!r:.80} holds no answer")


def _gold_answer(gold: str) -> str:
    boxed = last_boxed(gold)
    return _normalised(gold if boxed is None else boxed)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` whose braces balance; None if there is none. Linear in the text."""
    opened: list[int | None] = []
    start, content = -1, None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token.startswith("\\boxed"):
            opened.append(match.end())
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened:
            box = opened.pop()
            if box is not None and box > start:
                start, content = box, text[box : match.start()]
    return content


def _normalised(answer: str) -> str:
    """Without currency and maths signs, thin spaces, thousands separators, a full stop at the end."""
    text = answer.replace("\\$", "").replace("$", "").strip()
    if text.endswith(".") and not text.endswith(("..", "\\.")):
        text = text[:-1].rstrip()
    tight = _THIN_SPACE.sub("", text)
    if _THOUSANDS.fullmatch(tight):
        return tight.replace("{,}", "").replace(",", "")
    return _BARE_SQRT.sub(r"\\sqrt", text)


def _number(text: str) -> Decimal | None:
    """The exact value of a plain integer or decimal."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None


@functools.lru_cache(maxsize=4096)
def _compare(gold: str, answer: str) -> Reason:
    return _WORKER.compare(gold, answer)


class _Worker:
    """The math-verify process: one at a time, started when needed, shared by all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, gold: str, answer: str) -> Reason:
        """`timeout` when the process had to be killed or died of the expression."""
        with self._lock:
            process = self._ready()
            assert process.stdin is not None
            reply = None
            try:
                process.stdin.write(json.dumps([gold, answer, SECONDS]).encode() + b"\n")
                process.stdin.flush()
                reply = _reply(process, SECONDS)
            finally:
                if reply is None:  # Ctrl-C included: a late reply must not answer the next question
                    self._end()
            return "timeout" if reply is None else "right" if reply == b"1" else "wrong"

    def close(self) -> None:
        """Ends the process, if there is one; the next comparison starts another."""
        with self._lock:
            self._end()

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._end()
        return self._process or self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        # -P: the script's folder holds math.py and code.py, which must not shadow the standard library.
        command = [sys.executable, "-P", str(Path(__file__).with_name("_worker.py"))]
        # A session of its own: Ctrl-C is for the training process alone.
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._process = process
        if _reply(process, _START_SECONDS) != b"!":
            self._end()
            raise RunFailed(
                "the math-verify process did not start (see the error above); "
                f"try `{sys.executable} -c 'import math_verify'`"
            )
        return process

    def _end(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        with process:  # closes the pipes and reaps
            pass


def _reply(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """One character from the process; None when none came in time or the process died."""
    assert process.stdout is not None
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    if not poll.poll(seconds * 1000):
        return None
    return os.read(process.stdout.fileno(), 1) or None


_WORKER = _Worker()
atexit.register(_WORKER.close)
