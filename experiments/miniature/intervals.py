"""Means and differences with 95% intervals, over training seeds and problems at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 4000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its 95% interval."""

    mean: float
    low: float
    high: float

    def percent(self, sign: str = "") -> str:
        """In percent, or percentage points."""
        return f"{100 * self.mean:{sign}.1f} [{100 * self.low:{sign}.1f}, {100 * self.high:{sign}.1f}]"


class Results:
    """What the cells left, for some of the seeds."""

    def __init__(self, folder: Path, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self._entries: dict[str, list[dict[str, Any]]] = {}
        for cell in sorted(p.parent for p in folder.glob("**/0.json")):
            files = [cell / f"{seed}.json" for seed in seeds]
            if all(file.exists() for file in files):
                name = str(cell.relative_to(folder))
                self._entries[name] = [json.loads(file.read_text()) for file in files]

    def __contains__(self, cell: str) -> bool:
        return cell in self._entries

    def entries(self, cell: str) -> list[dict[str, Any]]:
        """One for each seed."""
        return self._entries[cell]

    def right(self, cell: str, domain: str) -> Array:
        """1 where the answer was right: [seeds, problems]."""
        return np.array([list(map(int, e["domains"][domain]["right"])) for e in self.entries(cell)], float)

    def figure(self, cell: str, domain: str, name: str) -> Interval:
        """A figure of each seed; the interval is over seeds."""
        values = np.array([e["domains"][domain][name] for e in self.entries(cell)])
        return interval([values[:, None]])

    def accuracy(self, cell: str, *domains: str) -> Interval:
        """Mean over the domains."""
        return interval([self.right(cell, domain) for domain in domains])

    def gain(self, cell: str, over: str, *domains: str) -> Interval:
        """How much more is right than in another cell: same problems, seed by seed; mean over the domains."""
        return interval([self.right(cell, domain) - self.right(over, domain) for domain in domains])


def interval(values: Sequence[Array]) -> Interval:
    """Mean over arrays [seeds, problems] with the 95% percentile interval of a crossed bootstrap.

    Each draw takes seeds and problems again with replacement, independently of each other (Owen 2007, "The pigeonhole
    bootstrap"); the seeds are the same for all arrays. Fixed random stream.
    """
    seeds_NS, shares = _draws(len(values[0]), tuple(array.shape[1] for array in values))
    total_N = np.zeros(DRAWS)
    for share_NP, array_SP in zip(shares, values, strict=True):
        total_N += np.einsum("ns,ns->n", seeds_NS, share_NP @ array_SP.T) / len(values)
    low, high = np.quantile(total_N, [0.025, 0.975])
    return Interval(float(np.mean([array.mean() for array in values])), float(low), float(high))


@lru_cache(maxsize=3)
def _draws(seeds: int, problems: tuple[int, ...]) -> tuple[Array, list[Array]]:
    """How much each seed, and each problem of each array, counts in each draw: [DRAWS, seeds] and [DRAWS, problems]."""
    generator = np.random.default_rng(0)
    seeds_NS, *shares = (
        generator.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n for n in (seeds, *problems)
    )
    return seeds_NS, shares
