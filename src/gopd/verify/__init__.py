"""What grades a response, in training and in evaluation alike: the same rules, the same code.

Importing it is cheap: math-verify lives in a process of its own, programs in the sandbox.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from gopd.errors import BadInput
from gopd.verify import code, math

if TYPE_CHECKING:
    from gopd.types import VerifierName

SOURCES: Mapping[VerifierName, tuple[str, ...]] = {
    "math": (
        *("tiny/arithmetic", "tiny/sequences"),
        *("gsm8k", "math", "math500", "math-*", "math_*", "hendrycks_math"),
        *("deepmath*", "aime*", "hmmt*", "dapo*", "numina*"),
    ),
    "code": (
        *("tiny/lists", "tiny/strings", "eurus*", "taco", "apps", "codecontests", "codeforces"),
        *("livecodebench*", "humaneval*", "mbpp*"),
    ),
}
"""Shell patterns of the data sources each verifier is for, matched without regard to case."""


def verifier_for(data_source: str) -> VerifierName:
    """The verifier for a row's `data_source`; an owner before the last slash may be there (`openai/gsm8k`).

    Raises BadInput for a source that is not in `SOURCES`.
    """
    whole = data_source.strip().lower()
    for verifier, patterns in SOURCES.items():
        for name in (whole, whole.rpartition("/")[2]):
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                return verifier
    known = "; ".join(f"{verifier}: {', '.join(patterns)}" for verifier, patterns in SOURCES.items())
    raise BadInput(
        f"no verifier is known for data_source {data_source!r} (known, with or without an owner before a slash: "
        f"{known}); set data.verifier to math, code or none"
    )


def check_ground_truth(verifier: VerifierName, ground_truth: str | None) -> None:
    """Raises BadInput when the verifier could not grade against this. Cheap: for every row, before training."""
    if verifier == "none":
        return
    text = _needed(ground_truth, verifier)
    if verifier == "math":
        math.check_gold(text)
    else:
        code.parse_ground_truth(text)


Item = tuple["VerifierName", str | None, str]
"""Verifier, ground truth and response."""


def grade_all(items: Sequence[Item]) -> list[float | None]:
    """Grades each: 1.0 right, 0.0 wrong, None for verifier `none`.

    Equal items are graded once. Programs run side by side, as many as there are CPUs, while the calling thread does the
    mathematics. Raises BadInput when a ground truth is missing or malformed.
    """
    rewards: dict[Item, float | None] = dict.fromkeys(items)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        running = {
            item: pool.submit(code.grade, _needed(item[1], "code"), item[2])
            for item in rewards
            if item[0] == "code"
        }
        for verifier, ground_truth, response in rewards:
            if verifier == "math":
                right = math.grade(_needed(ground_truth, verifier), response)
                rewards[verifier, ground_truth, response] = float(right)
        for item, result in running.items():
            rewards[item] = float(result.result())
    return [rewards[item] for item in items]


def _needed(ground_truth: str | None, verifier: VerifierName) -> str:
    if ground_truth is None:
        raise BadInput(f"verifier {verifier} needs a ground truth, and there is none")
    return ground_truth
