"""From graded samples to figures: averages, pass@k, majority votes, lengths, each with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gopd.errors import BadInput
from gopd.estimates import Estimate, estimate, majority, pass_at_k, proportion
from gopd.evaluate.results import Record
from gopd.verify import math


@dataclass(frozen=True, slots=True)
class Figures:
    """One task's figures over `problems`, each answered `samples` times.

    `average` (avg@n) is the headline: the mean over problems of the share of right samples. `majority` (maj@n) is for
    mathematics only. `tokens` are those of a response; `truncated` is the share cut at the limit, `unanswered` that
    without a finished box or code block. `reasons` counts the graders' reasons.
    """

    problems: int
    samples: int
    average: Estimate
    pass_at: Mapping[int, Estimate]
    majority: Estimate | None
    tokens: Estimate
    truncated: Estimate
    unanswered: Estimate
    reasons: Mapping[str, int]

    def entry(self) -> dict[str, Any]:
        """As in `summary.json`."""
        return asdict(self)


def figures(
    problems: Sequence[Sequence[Record]],
    domain: Literal["math", "code"],
    pass_at: Sequence[int],
    right: Callable[[Record], bool] = lambda record: record["right"],
) -> Figures:
    """Of the samples of each problem; `right` says which count. Raises BadInput for a k above the samples."""
    samples = min(map(len, problems))
    check_pass_at(pass_at, samples)

    def means(of: Callable[[Record], float]) -> list[float]:
        return [sum(map(of, records)) / len(records) for records in problems]

    counts = [sum(map(right, records)) for records in problems]
    return Figures(
        problems=len(problems),
        samples=samples,
        average=proportion(means(right)),
        pass_at={
            k: proportion([pass_at_k(len(r), c, k) for r, c in zip(problems, counts, strict=True)])
            for k in pass_at
        },
        majority=proportion([majority(_votes(records)) for records in problems])
        if domain == "math"
        else None,
        tokens=estimate(means(lambda record: record["tokens"])),
        truncated=proportion(means(lambda record: not record["finished"])),
        unanswered=proportion(means(lambda record: record["reason"] == "no-answer")),
        reasons=dict(Counter(record["reason"] for records in problems for record in records)),
    )


def check_pass_at(pass_at: Sequence[int], samples: int) -> None:
    """Raises BadInput for a k that so few samples cannot estimate."""
    for k in pass_at:
        if not 1 <= k <= samples:
            raise BadInput(
                f"pass@{k} cannot be estimated from {samples} samples per problem; raise --n or lower --pass-at"
            )


def _votes(records: Sequence[Record]) -> list[tuple[int, bool]]:
    """The answers of one problem, equal ones by one number, right ones by 0; without an answer there is no vote."""
    votes, wrong = list[tuple[int, bool]](), list[Record]()
    for record in records:
        if record["right"]:
            votes.append((0, True))
        elif record["reason"] != "no-answer":
            place = next((i for i, other in enumerate(wrong) if _equal(record, other)), len(wrong))
            wrong += [record] if place == len(wrong) else []
            votes.append((place + 1, False))
    return votes


def _equal(one: Record, other: Record) -> bool:
    """Of two wrong answers; those that could not be compared in time are equal to their like only."""
    if one["answer"] == other["answer"]:
        return True
    return one["reason"] == other["reason"] == "wrong" and math.equal(one["answer"], other["answer"])
