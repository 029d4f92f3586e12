"""What a generated problem is, whatever its domain."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem; `mistaken(rng)` writes an answer with one plausible mistake, sure to be graded wrong.

    `key` is the canonical content: equal for problems that differ in wording only.
    """

    key: str
    prompt: str
    ground_truth: str
    solution: str
    mistaken: Callable[[random.Random], str]
