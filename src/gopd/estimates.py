"""Figures over problems and samples, with intervals that say what so few problems can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its 95% interval."""

    mean: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """Of one value per problem; the interval by `bootstrap_interval`."""
    array = np.array(values, dtype=np.float64)
    return Estimate(float(array.mean()), *bootstrap_interval(array))


def proportion(values: Sequence[float]) -> Estimate:
    """`estimate` of values between 0 and 1.

    Where all are 0, or all are 1, resampling would show no doubt at all: the interval is then the exact binomial one
    (Clopper–Pearson) of so many problems, from 0 to 1 − 0.025^(1/problems), or the like from above.
    """
    if len(set(values)) == 1 and values[0] in (0, 1):
        doubt = 1 - 0.025 ** (1 / len(values))
        return Estimate(0.0, 0.0, doubt) if values[0] == 0 else Estimate(1.0, 1 - doubt, 1.0)
    return estimate(values)


def bootstrap_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """95% percentile interval of the mean by resampling `values` [problems] with a fixed seed."""
    distinct, times = np.unique(values, return_counts=True)  # few where rewards are 0 or 1: quick
    draws = np.random.default_rng(0).multinomial(len(values), times / len(values), size=RESAMPLES)
    low, high = np.quantile(draws @ distinct / len(values), [0.025, 0.975])
    return float(low), float(high)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """1 − C(n−c, k) / C(n, k): the chance that k of the n samples, drawn without replacement, hold a right one.

    Unbiased for pass@k when the samples are independent (Chen et al. 2021, arXiv 2107.03374). Asks for k ≤ n.
    """
    assert 0 < k <= samples
    return 1 - comb(samples - right, k) / comb(samples, k)


def majority(votes: Sequence[tuple[int, bool]]) -> float:
    """Whether the most frequent answer is right, from (answer, is it right) of each vote; tied answers share.

    Equal answers have equal numbers. 0 without votes.
    """
    counts: dict[int, int] = {}
    for answer, _ in votes:
        counts[answer] = counts.get(answer, 0) + 1
    if not counts:
        return 0.0
    most = max(counts.values())
    right = dict(votes)
    tied = [right[answer] for answer, count in counts.items() if count == most]
    return sum(tied) / len(tied)
