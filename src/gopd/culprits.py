"""Which row, whose number at which token made a loss that is not finite, and the mend: for messages."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from gopd.types import Rollout, TokenReport

EXCLUDES = "gives it probability 0 (log-prob -inf)"
FOR_ALL = (
    "every token that a student draws needs a probability above 0 there: take away what masks tokens, or leave such "
    "prompts out"
)
DAMAGED = "look for damaged weights, or for numbers that overflow in train.compute_dtype"
OWN = "the student has diverged: go back to an earlier checkpoint with a lower optim.lr"
WHOLE = (
    "it is infinite where teacher or reference give probability 0 to a token that the student could draw; "
    "objective.estimator sampled without control variate asks about drawn tokens only"
)


def find_culprits(rows: Mapping[int, tuple[Rollout, TokenReport]]) -> dict[int, tuple[int, str, str]]:
    """Of rows by number, those with a number that is not finite: its token, what it is in words, and the mend."""
    found = {row: _culprit(rollout, report) for row, (rollout, report) in rows.items()}
    return {row: culprit for row, culprit in found.items() if culprit is not None}


def describe_culprits(
    found: Mapping[int, tuple[int, str, str]], rollouts: Mapping[int, Rollout], name: Callable[[int], str]
) -> str:
    """The first one in full, and how many more there are. `name` gives a token id's text."""
    row, (token, what, mend) = next(iter(found.items()))
    rollout = rollouts[row]
    ids = rollout.response_ids
    place = f"{rollout.prompt.where} (sample {rollout.sample}), response token {token + 1} of {len(ids)}"
    more = f" (and {len(found) - 1} more rows)" if len(found) > 1 else ""
    return f"{place}, {name(ids[token])!r}: {what}{more}; {mend}"


def _culprit(rollout: Rollout, report: TokenReport) -> tuple[int, str, str] | None:
    """The first token with a number that is not finite, whose it is, and the mend."""
    scores, route = report.scores, rollout.prompt.route
    models: list[tuple[str, Tensor | None]] = [("the student", report.student_logprobs_R)]
    if scores is not None:
        reference = "the reference" if scores.route is None else f"the reference of teacher {route}"
        models += [(f"teacher {route}", scores.teacher_logprobs_R), (reference, scores.reference_logprobs_R)]
    for role, logprobs_R in models:
        if (token := _first(logprobs_R)) is None:
            continue
        assert logprobs_R is not None
        value = float(logprobs_R[token])
        what = EXCLUDES if value == -float("inf") else f"gives it the log-prob {value}"
        mend = OWN if role == "the student" else FOR_ALL if what == EXCLUDES else DAMAGED
        return token, f"{role} {what}", mend
    if (token := _first(report.kl_R)) is not None and scores is not None:
        return token, f"the KL to the target of teacher {route} is not finite there", WHOLE
    if (token := _first(report.advantage_R)) is not None:
        return token, f"its advantage is {float(report.advantage_R[token])}", DAMAGED
    return None


def _first(values_R: Tensor | None) -> int | None:
    """The place of the first number that is not finite."""
    if values_R is None:
        return None
    places = (~values_R.isfinite()).nonzero()
    return int(places[0]) if len(places) else None
