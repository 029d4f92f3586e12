"""The graders: answers per second, runs of programs per second, and what the sandbox adds to a bare process.

Not part of `make bench`: `.venv/bin/python benchmarks/run.py grading`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import models
import numpy as np
import torch

from gopd.memory import keep_freed_memory
from gopd.model import load_model
from gopd.sampler import Request, Response, nothing
from gopd.sampler.torch import TorchSampler
from gopd.sandbox import Isolation, Limits
from gopd.sandbox.process import launch
from gopd.sections import ModelSpec, SamplingSection
from gopd.verify import code, math

ROUNDS = 5
LAYERS: tuple[Isolation, ...] = ("namespaces", "landlock", "none")
PROGRAM = "print(sum(map(int, open(0).read().split())))"
ROWS, TOKENS = 64, 128
TRUTH = json.dumps({"fn_name": "add", "inputs": [[1, 2], [3, 4]], "outputs": [3, 7]})
ADD = "def add(a, b): return a + b  # for row "


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    rounds = 2 if quick else ROUNDS
    found = {
        "math": mathematics(rounds),
        "sandbox": sandboxes(rounds),
        "overlap": overlap(min(3, rounds), quick),
    }
    for part, figures in found.items():
        print(
            f"  {part}: " + ", ".join(f"{name} {value:.3g}" for name, value in figures["shown"].items()),
            flush=True,
        )
    return found


def mathematics(rounds: int) -> dict[str, Any]:
    """Answers per second on one core: plain numbers in a long response, and expressions for math-verify."""
    text = "Let $x = {1 \\over 2}$, so \\frac{x}{3} is it.\n" * 50
    plain = [(str(n), f"{text}\\boxed{{{n}}}") for n in range(2000)]
    expressions = [(f"\\frac{{{n}}}{{7}}", f"{text}\\boxed{{{n}/7}}") for n in range(1, 200)]
    math.grade("1", "\\boxed{\\frac{1}{1}}")  # starts the process
    seconds: dict[str, list[float]] = {"plain answers": [], "expressions": []}
    for _ in range(rounds):
        for name, rows in (("plain answers", plain), ("expressions", expressions)):
            math._compare.cache_clear()
            start = time.perf_counter()
            assert all(math.grade(gold, response) for gold, response in rows)
            seconds[name].append((time.perf_counter() - start) / len(rows))
    return {"seconds": seconds, "shown": {f"{name} per s": 1 / median(s) for name, s in seconds.items()}}


def sandboxes(rounds: int) -> dict[str, Any]:
    """Milliseconds of one run, each isolation and a bare process in turn; and runs per second on all cores."""
    bare = [sys.executable, "-I", "-S", "-c", PROGRAM]

    def plain() -> None:
        subprocess.run(bare, input=b"1 2", capture_output=True, check=True)

    ways: dict[str, Callable[[], object]] = {"bare process": plain}
    for layer in LAYERS:
        ways[layer] = lambda layer=layer: launch(layer, PROGRAM, b"1 2", Limits())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(10 * rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    shown = {f"{name}, ms": 1000 * median(values) for name, values in seconds.items()}
    for name, way in ways.items():
        start = time.perf_counter()
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            list(pool.map(lambda _, way=way: way(), range(40 * rounds)))
        shown[f"{name}, runs per s"] = 40 * rounds / (time.perf_counter() - start)
    return {"seconds": seconds, "shown": shown}


def overlap(rounds: int, quick: bool) -> dict[str, Any]:
    """Sampling SmolLM2's answers alone, and with a right program graded for each as soon as it is finished."""
    keep_freed_memory()
    folder = models.tiny() if quick else models.smollm2()
    model = load_model(ModelSpec(model=str(folder)), "model", device=torch.device("cpu"), dtype=torch.float32)
    sampler = TorchSampler(model.freeze(), ROWS)
    lengths = np.random.default_rng(0).integers(TOKENS // 2, TOKENS + 1, ROWS).tolist()
    seconds: dict[str, list[float]] = {"sampling": [], "sampling and grading": []}
    for number in range(rounds):
        prompts = np.random.default_rng(number).integers(100, 500, (ROWS, 64)).tolist()
        requests = [Request(ids, (number, i), lengths[i]) for i, ids in enumerate(prompts)]
        for name in sorted(seconds, reverse=number % 2 == 0):
            verdicts: list[Future[bool]] = []
            start = time.perf_counter()
            with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:

                def finished(
                    number: int, response: Response, pool: Any = pool, verdicts: Any = verdicts
                ) -> None:
                    verdicts.append(pool.submit(code.grade, TRUTH, f"```python\n{ADD}{number}\n```"))

                sampler.sample(
                    requests,
                    SamplingSection(),
                    lambda *_: None,
                    nothing if name == "sampling" else finished,
                )
            assert all(verdict.result() for verdict in verdicts)
            seconds[name].append(time.perf_counter() - start)
    ratio = median(b / a for a, b in zip(*seconds.values(), strict=True))
    shown = {f"{name}, s": median(values) for name, values in seconds.items()} | {"ratio": ratio}
    return {"seconds": seconds, "rows": ROWS, "lengths": lengths, "shown": shown}
