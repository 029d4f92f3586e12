"""The embedded sampler against Transformers' `generate` and vLLM: equal and long-tailed lengths, shared prompts."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import models
import numpy as np
from turns import Player, players

HERE = Path(__file__).resolve().parent
VLLM = importlib.util.find_spec("vllm") is not None
ENGINES = ("gopd", "generate", "generate-static", "vllm", "products", "attention")
ROUNDS = 2
FLOORED = ("gopd", "generate", "vllm", "products", "attention")
"""Engines of the cases with a target, where what sampling cannot do without is measured in turn too."""


EVEN = "gopd, equal lengths"


@dataclass(frozen=True)
class Case:
    """Rows of one call. `prompts` and `lengths` count tokens."""

    name: str
    prompts: list[int]
    lengths: list[int]
    samples: int = 1
    engines: tuple[str, ...] = ("gopd", "generate", "vllm")
    evened: bool = False
    """Whether gopd also draws as many tokens in rows of equal lengths, in turn."""

    def request(self, number: int) -> dict[str, Any]:
        """As an engine gets it: random ids, other ones for each number, as vLLM remembers prompts."""
        generator = np.random.default_rng(number)
        distinct = [generator.integers(100, 500, n).tolist() for n in self.prompts[:: self.samples]]
        return {"prompts": [ids for ids in distinct for _ in range(self.samples)], "lengths": self.lengths}


def cases(quick: bool) -> list[Case]:
    """Small ones for the tiny model, or those of the targets."""
    if quick:
        equal = [Case(f"batch {n}, equal lengths", [64] * n, [16] * n, engines=ENGINES) for n in (1, 16)]
        return [*equal, tailed(rows=16, mean=16, longest=64), shared(prompts=2, tokens=128, length=16)]
    return [
        Case("batch 1, equal lengths", [64], [32], engines=ENGINES[:4]),
        Case("batch 16, 16 tokens each", [64] * 16, [16] * 16, engines=("generate", "generate-static")),
        Case("batch 16, equal lengths", [64] * 16, [56] * 16, engines=FLOORED),
        Case("batch 64, equal lengths", [64] * 64, [56] * 64, engines=FLOORED),
        Case("batch 256, equal lengths", [32] * 256, [4] * 256, engines=("gopd", "vllm")),
        tailed(rows=96, mean=24, longest=96),
        shared(prompts=2, tokens=512, length=24),
    ]


def tailed(rows: int, mean: int, longest: int) -> Case:
    """Long-tailed lengths."""
    lengths = long_tailed(rows, mean, longest)
    return Case(f"{rows} rows, long-tailed lengths", [64] * rows, lengths, evened=True)


def shared(prompts: int, tokens: int, length: int) -> Case:
    """Eight samples for each prompt."""
    rows = 8 * prompts
    return Case(f"{prompts} prompts of {tokens} tokens × 8 samples", [tokens] * rows, [length] * rows, 8)


def long_tailed(rows: int, mean: int, longest: int) -> list[int]:
    """Log-normal lengths (σ = 0.8), cut at `longest`."""
    draws = np.random.default_rng(0).lognormal(np.log(mean) - 0.32, 0.8, rows)
    return [int(n) for n in np.clip(draws, 1, longest)]


def evened(lengths: list[int]) -> list[int]:
    """As many rows and tokens, all rows within one token of each other."""
    each, more = divmod(sum(lengths), len(lengths))
    return [each + (i < more) for i in range(len(lengths))]


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    model = models.tiny() if quick else models.smollm2()
    commands = {
        engine: [sys.executable, HERE / "workers" / "sampling.py", engine, model]
        for engine in ENGINES
        if engine != "vllm" or (VLLM and not quick)
    }
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "4",
    }
    results: dict[str, Any] = {"model": model.name, "cases": {}}
    with players(commands) as team:
        for case in cases(quick):
            mine = {name: player for name, player in team.items() if name in case.engines}
            results["cases"][case.name] = measure(case, mine)
    return results


def measure(case: Case, team: dict[str, Player]) -> dict[str, Any]:
    """Seconds of each engine round by round, after a first turn that does not count.

    That one is short, but whole for gopd where there is a target, as gopd keeps the memory that it got.
    """
    for name, player in team.items():
        whole = name == "gopd" and (case.engines == FLOORED or case.evened)
        lengths = case.lengths if whole else [min(2, n) for n in case.lengths]
        player.turn(**case.request(0) | {"lengths": lengths})
    seconds: dict[str, list[float]] = {name: [] for name in team} | ({EVEN: []} if case.evened else {})
    for number in range(ROUNDS):
        request = case.request(1 + number)
        for name, player in team.items():
            turns = {name: request}
            if case.evened and name == "gopd":
                turns[EVEN] = request | {"lengths": evened(case.lengths)}
            # Whatever comes first after another program's turn is at a disadvantage.
            for turn in sorted(turns, reverse=number % 2 == 0):
                seconds[turn].append(player.turn(**turns[turn])["seconds"])
    tokens = sum(case.lengths)
    rates = {name: tokens / median(values) for name, values in seconds.items()}
    print(f"  {case.name}: " + ", ".join(f"{n} {r:.0f} tokens/s" for n, r in rates.items()), flush=True)
    return {
        "tokens": tokens,
        "prompts": case.prompts,
        "lengths": case.lengths,
        "samples": case.samples,
        "seconds": seconds,
        "tokens_per_second": rates,
    }
