"""Calling a function of an untrusted program: arguments in, values out, both as data."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopd import sandbox
from gopd.types import Reason
from gopd.verify._values import decode

_PROGRAM = "\n".join(
    Path(__file__).with_name(name).read_text(encoding="utf-8") for name in ("_values.py", "_calls.py")
)


@dataclass(frozen=True, slots=True)
class Digest:
    """Stands for a long value: equal for equal ones."""

    sha256: str


@dataclass(frozen=True, slots=True)
class Calls:
    """What came back, call by call, up to the first that failed; `failure` says why there are no more."""

    values: list[Any]
    seconds: list[float]
    failure: Reason | None


def call(
    program: str,
    function: str,
    arguments: Sequence[Any],
    *,
    limits: sandbox.Limits,
    prelude: str = "",
    seconds: Sequence[float] | None = None,
    digest_above: int | None = None,
    longest: int | None = None,
) -> Calls:
    """Runs `program`, then calls its `function`, or the method of a new `Solution`, with each of the `arguments`.

    Each entry of `arguments` is a list as `encode` gives it; all calls share one process and `limits`. `seconds` limits
    the CPU time of each call. A value that takes more than `digest_above` characters comes back as its `Digest`.
    One that takes more than `longest` is not read: the failure is then `output-limit`.
    """
    token = secrets.token_hex(16)
    request = {
        **{"token": token, "prelude": prelude, "program": program, "function": function, "calls": arguments},
        "seconds": seconds or [limits.seconds] * len(arguments),
        "digest_above": digest_above,
    }
    outcome = sandbox.run(_PROGRAM, stdin=json.dumps(request).encode(), limits=limits)
    values, spent = list[Any](), list[float]()
    for line in outcome.stdout.decode("utf-8", "replace").splitlines():
        mark, _, text = line.partition(" ")
        if mark != token:
            break
        if longest is not None and len(text) > longest:
            return Calls(values, spent, "output-limit")
        try:
            result = json.loads(text)
            if "error" in result:
                return Calls(values, spent, "error")
            values.append(Digest(result["digest"]) if "digest" in result else decode(result["value"]))
            spent.append(float(result["seconds"]))
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
            break  # not as our own program writes it
    if len(values) == len(spent) == len(arguments) and outcome.status == "ok":
        return Calls(values, spent, None)
    return Calls(values[: len(arguments)], spent, _failure(outcome))


def _failure(outcome: sandbox.Outcome) -> Reason:
    return "error" if outcome.status == "ok" else outcome.status
