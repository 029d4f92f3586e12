"""Assumed lengths of responses, and rows shared out among processes."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def response_lengths(rows: int, mean: float, limit: int, spread: float, seed: int = 0) -> list[int]:
    """Log-normal lengths of so many rows, cut at the limit, whose mean is `mean` to within a token; shuffled.

    The lengths are the distribution's own quantiles, so there is no luck in them. `spread` is the standard deviation
    of their logarithm; 0 makes all equal.
    """
    normal = NormalDist()
    quantiles = np.array([normal.inv_cdf((i + 0.5) / rows) for i in range(rows)])
    low, high = 0.0, 60.0
    for _ in range(60):
        centre = (low + high) / 2
        lengths = np.exp(np.minimum(centre + spread * quantiles, 60.0)).clip(1, limit).round()
        low, high = (centre, high) if lengths.mean() < mean else (low, centre)
    return [int(n) for n in np.random.default_rng(seed).permutation(lengths)]


def dealt(rows: Sequence[int], processes: int) -> list[list[int]]:
    """Rows dealt out in turn, as one must who does not know their lengths yet."""
    return [list(rows[i::processes]) for i in range(processes)]


def balanced(lengths: Sequence[int], processes: int) -> list[list[int]]:
    """Row numbers shared out by length: the longest first, each to whoever has least."""
    shares: list[list[int]] = [[] for _ in range(processes)]
    heap = [(0, i) for i in range(processes)]
    for row in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        load, share = heapq.heappop(heap)
        shares[share].append(row)
        heapq.heappush(heap, (load + lengths[row], share))
    return shares
