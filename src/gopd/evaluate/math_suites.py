"""Rows of the mathematical suites."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from itertools import islice

from gopd.errors import BadInput
from gopd.evaluate.problem import Problem, Reading, Row, field
from gopd.verify import math

SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
"""The published instruction."""

CORRECTIONS: Mapping[str, tuple[str, str]] = {
    "hmmt25_nov/20": (r"\frac{sqrt{7} + 1}{2}", r"\frac{\sqrt{7} + 1}{2}"),
}
"""Golds with an evident error, as published and as meant, by suite and problem."""


def problems(suite: str, rows: Iterable[Row], reading: Reading) -> list[Problem]:
    """Problems of rows with `problem` (or `question`) and `answer`; of GSM8K's answers what follows `####`."""
    found = []
    for number, (where, row) in enumerate(islice(rows, reading.limit), 1):
        text = field(where, row, "problem", "question")
        gold = str(field(where, row, "answer")).rpartition("####")[2].strip()
        name = str(row.get("id", row.get("problem_idx", row.get("unique_id", number))))
        published, meant = CORRECTIONS.get(f"{suite}/{name}", ("", ""))
        if gold == published and reading.golds == "corrected":
            gold = meant
        try:
            math.check_gold(gold)
        except BadInput as error:
            raise BadInput(f"{where}: {error}") from error
        found.append(Problem(name, str(text).strip() + SUFFIX, functools.partial(math.judge, gold)))
    return found
