"""The embedded sampler against Transformers' `generate` and vLLM: equal and long-tailed lengths, shared prompts."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import models
import numpy as np
from limits import decode_floor
from turns import Player, players

HERE = Path(__file__).resolve().parent
VLLM = models.ROOT / ".venv-vllm" / "bin" / "python"
ENGINES = ("gopd", "generate", "generate-static", "vllm")


@dataclass(frozen=True)
class Case:
    """Rows of one call. `prompts` are lengths."""

    name: str
    prompts: list[int]
    lengths: list[int]
    samples: int = 1

    def request(self) -> dict[str, Any]:
        """As an engine gets it: random ids, equal for the samples of one prompt."""
        generator = np.random.default_rng(0)
        distinct = [generator.integers(100, 500, n).tolist() for n in self.prompts[:: self.samples]]
        prompts = [ids for ids in distinct for _ in range(self.samples)]
        return {"prompts": prompts, "lengths": self.lengths, "samples": self.samples}


def cases(quick: bool) -> list[Case]:
    tokens = 16 if quick else 64
    found = [
        Case(f"batch {n}, equal lengths", [64] * n, [tokens] * n)
        for n in ((1, 16) if quick else (1, 16, 64, 256))
    ]
    rows = 16 if quick else 128
    tailed = long_tailed(rows, mean=tokens, longest=4 * tokens)
    found.append(Case(f"{rows} rows, long-tailed lengths", [64] * rows, tailed))
    found.append(Case(f"{rows} rows, equal lengths, as many tokens", [64] * rows, evened(tailed)))
    prompts, long = (2, 128) if quick else (8, 512)
    found.append(
        Case(
            f"{prompts} prompts of {long} tokens × 8 samples", [long] * 8 * prompts, [tokens] * 8 * prompts, 8
        )
    )
    return found


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
        engine: [
            VLLM if engine == "vllm" else sys.executable,
            HERE / "workers" / "sampling.py",
            engine,
            model,
        ]
        for engine in ENGINES
        if engine != "vllm" or (VLLM.exists() and not quick)
    }
    os.environ |= {
        "VLLM_CPU_OMP_THREADS_BIND": "0-1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "4",
    }
    results: dict[str, Any] = {"model": model.name, "cases": {}}
    with players(commands) as team:
        for case in cases(quick):
            results["cases"][case.name] = measure(case, team, rounds=2 if quick else 3)
    results["decode_floor"] = decode_floor(model, [1, 16, 64])
    return results


def measure(case: Case, team: dict[str, Player], rounds: int) -> dict[str, Any]:
    """Seconds of each engine round by round; the first turn of each does not count when it is short."""
    request = case.request()
    short = request | {"lengths": [min(2, n) for n in case.lengths]}
    for player in team.values():
        player.turn(**short)
    seconds: dict[str, list[float]] = {name: [] for name in team}
    for _ in range(rounds):
        for name, player in team.items():
            seconds[name].append(player.turn(**request)["seconds"])
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
