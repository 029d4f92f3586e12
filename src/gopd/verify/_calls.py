# The program that runs inside the sandbox to call a function; read as text after `_values.py`, never imported.
# Standard input: one JSON object {token, prelude, program, function, calls, seconds, digest_above}. Standard output,
# once the program under test can no longer reach it by printing: one line per call, the token, a space, and JSON:
# {"value": ...} as `encode` has it, or {"digest": ...} of a longer one, with "seconds"; or {"error": ...}, and then no
# more lines. Expected values never come here.
import hashlib
import json
import marshal
import os
import sys
from _signal import ITIMER_PROF, setitimer  # type: ignore[import-not-found]
from time import perf_counter
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from gopd.verify._values import decode, digest, encode

_FLAT_ABOVE = 1 << 20  # bytes; longer values are told apart by their types too: 1 is not 1.0 there


def _serve() -> None:
    request = json.load(sys.stdin)
    channel = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    try:
        load = _load(request)
        for arguments, seconds in zip(request["calls"], request["seconds"]):  # noqa: B905
            given = [decode(argument) for argument in arguments]
            setitimer(ITIMER_PROF, seconds)  # its signal ends the process
            start = perf_counter()
            value = load()(*given)
            spent = perf_counter() - start
            setitimer(ITIMER_PROF, 0)
            _say(channel, request["token"], _result(value, request["digest_above"]) | {"seconds": spent})
    except BaseException as error:  # whatever the program raises, SystemExit among it
        _say(channel, request["token"], {"error": type(error).__name__})
    os._exit(0)  # no exit handlers, no waiting for threads


def _load(request: dict[str, str]) -> "Callable[[], Callable[..., object]]":
    """A function without arguments that gives what is to be called: methods have a new object each time."""
    module = ModuleType("solution")
    sys.modules["solution"] = module  # dataclasses look their module up
    exec(request["prelude"], module.__dict__)
    exec(compile(request["program"], "solution.py", "exec"), module.__dict__)
    name = request["function"]
    solution = module.__dict__.get("Solution")
    if isinstance(solution, type) and name in dir(solution):
        return lambda: getattr(module.__dict__["Solution"](), name)
    return lambda: module.__dict__[name]


def _result(value: object, digest_above: int | None) -> dict[str, object]:
    if digest_above is not None:
        size, sha256 = _flat(value)
        if size > _FLAT_ABOVE:
            return {"digest": sha256}
    tree = encode(value)
    if digest_above is not None and len(json.dumps(tree)) > digest_above:
        return {"digest": digest(value)}
    return {"value": tree}


def _flat(value: object) -> tuple[int, str]:
    """Size and digest of all its bytes, fast; 0 for anything but the plain types themselves."""
    size, sha256 = 0, hashlib.sha256(type(value).__name__.encode())
    parts = iter([value])
    if isinstance(value, (list, tuple)) and type(value) in (list, tuple):  # a gigabyte at once takes longer
        parts = (value[i : i + 4096] for i in range(0, len(value), 4096))
    try:
        for part in parts:
            text = marshal.dumps(part, 1)  # type: ignore[arg-type]
            size += len(text)
            sha256.update(text)
    except ValueError:
        return 0, ""
    return size, sha256.hexdigest()


def _say(channel: int, token: str, line: dict[str, object]) -> None:
    text = memoryview(f"{token} {json.dumps(line)}\n".encode())
    while text:
        text = text[os.write(channel, text) :]


_serve()
