"""Rows of LiveCodeBench, in the exact format of its release files."""

from __future__ import annotations

import base64
import binascii
import functools
import io
import json
import pickle
import zlib
from collections.abc import Iterable
from itertools import islice
from typing import Any, NoReturn

from gopd.errors import BadInput
from gopd.evaluate.problem import Problem, Reading, Row, field
from gopd.verify import code

SUFFIX = (
    "\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end. "
    "You need to think first then write the Python code."
)
"""The published instruction."""

_STARTER = (
    "\n\nYou will use the following starter code to write the solution to the problem:\n```python\n{}\n```"
)
_STDIN = "\n\nRead the inputs from stdin, solve the problem and write the answer to stdout."
_LARGEST = 1 << 30


def livecodebench(rows: Iterable[Row], reading: Reading) -> list[Problem]:
    """Problems with public and private tests. The starter code is part of the prompt: without it the name of the
    function to write, which the tests call, would have to be guessed.
    """
    rules = code.REFERENCE if reading.lcb_compat else code.OURS
    found = []
    for where, row in islice(rows, reading.limit):
        text, starter = str(field(where, row, "question_content")), str(row.get("starter_code") or "")
        tests = _json(where, "public_test_cases", row) + _private_tests(
            where, field(where, row, "private_test_cases")
        )
        truth = {
            "inputs": [field(where, test, "input") for test in tests],
            "outputs": [field(where, test, "output") for test in tests],
            "fn_name": _json(where, "metadata", row).get("func_name"),
        }
        try:
            problem = code.parse_ground_truth(json.dumps(truth))
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from error
        judge = functools.partial(code.judge, problem, rules=rules, budget=code.EVALUATION)
        asked = text.strip() + (_STARTER.format(starter.rstrip()) if starter.strip() else _STDIN) + SUFFIX
        found.append(Problem(str(field(where, row, "question_id")), asked, judge))
    return found


def _json(where: str, name: str, row: Any) -> Any:
    value = field(where, row, name)
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise BadInput(f"{where}: {name} is not JSON: {error}") from error


def _private_tests(where: str, text: Any) -> list[Any]:
    """JSON, or JSON that was pickled, compressed and written in base 64."""
    try:
        try:
            tests = json.loads(text)
        except ValueError:
            unpacker = zlib.decompressobj()
            packed = unpacker.decompress(base64.b64decode(text, validate=True), _LARGEST)
            if unpacker.unconsumed_tail:
                raise ValueError(f"larger than {_LARGEST >> 30} GiB") from None
            tests = json.loads(_TextOnly(io.BytesIO(packed)).load())
        if not isinstance(tests, list):
            raise ValueError(f"found {type(tests).__name__}, not a list of tests")
        return tests
    except (ValueError, TypeError, binascii.Error, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise BadInput(f"{where}: private_test_cases cannot be read: {error}") from error


class _TextOnly(pickle.Unpickler):
    """Reads plain data; refuses every class and function that a pickle may name."""

    def find_class(self, module_name: str, global_name: str, /) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, and only text is expected")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it refers to something outside")
