"""Four verifiable domains small enough for models of half a million parameters: two of numbers, two of programs.

A problem is held out or not by a hash of its canonical content (the steps of the sum, the given numbers, the program
itself), never of its wording, so one underlying problem cannot appear on both sides in two wordings. A demonstration
answers a problem; with a given probability it makes one plausible mistake, which is what makes the base model
middling.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, Literal

from arithmetic import draw_arithmetic
from lists import LISTS
from programs import draw_program
from schema import Problem
from sequences import draw_sequence
from strings import STRINGS

Domain = Literal["arithmetic", "lists", "sequences", "strings"]
Part = Literal["train", "heldout"]
Row = dict[str, Any]

DRAW: dict[Domain, Callable[[random.Random, Callable[[str], bool]], Problem]] = {
    "arithmetic": draw_arithmetic,
    "lists": partial(draw_program, LISTS),
    "sequences": draw_sequence,
    "strings": partial(draw_program, STRINGS),
}
TEACHER_OF: dict[Domain, str] = {
    "arithmetic": "math",
    "lists": "code",
    "sequences": "sequences",
    "strings": "strings",
}
HELD_OUT_SHARE = 10  # one problem in so many


def part_of(key: str) -> Part:
    """Which side of the split a problem is on; depends on its canonical content alone."""
    digest = hashlib.sha256(key.encode()).digest()
    return "heldout" if int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0 else "train"


def problems(domain: Domain, part: Part, seed: int) -> Iterator[Problem]:
    """Endless stream of distinct problems of one domain on one side of the split."""
    rng = random.Random(f"{domain}/{part}/{seed}")
    seen: set[str] = set()
    while True:
        problem = DRAW[domain](rng, lambda key: part_of(key) == part and key not in seen)
        seen.add(problem.key)
        yield problem


def rows(domain: Domain, part: Part, count: int, *, seed: int, mistake_rate: float = 0.0) -> list[Row]:
    """`count` rows in the schema of the data files, one per distinct problem.

    `response` demonstrates an answer, wrong with probability `mistake_rate`; `extra_info.ref_solution` is
    always right.
    """
    rng = random.Random(f"demonstrations/{domain}/{part}/{seed}")
    found = []
    for problem in islice(problems(domain, part, seed), count):
        wrong = rng.random() < mistake_rate
        response = problem.mistaken(rng) if wrong else problem.solution
        found.append(problem_row(domain, problem) | {"response": response})
    return found


def problem_row(domain: Domain, problem: Problem) -> Row:
    """A problem in the schema of the data files, without a response."""
    return {
        "data_source": f"tiny/{domain}",
        "prompt": [{"role": "user", "content": problem.prompt}],
        "reward_model": {"ground_truth": problem.ground_truth},
        "extra_info": {
            "opd_teacher": TEACHER_OF[domain],
            "ref_solution": problem.solution,
            "key": problem.key,
        },
    }
