"""The graders: answers per second, runs of programs per second, and what the sandbox adds to a bare process.

Not part of `make bench`: `.venv/bin/python benchmarks/run.py grading`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import torch

from gopd.memory import keep_freed_memory
from gopd.model import load_model
from gopd.rollouts import prompt_set
from gopd.sampler import Request, Response
from gopd.sampler.torch import TorchSampler
from gopd.sandbox import Isolation, Limits
from gopd.sandbox.process import launch
from gopd.sections import ModelSpec, SamplingSection, SourceSection, View
from gopd.verify import grade_all, math

ROUNDS = 5
LAYERS: tuple[Isolation, ...] = ("namespaces", "landlock", "none")
PROGRAM = "print(sum(map(int, open(0).read().split())))"
PROBLEMS, SAMPLES, TOKENS = 64, 4, 96


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    rounds = 2 if quick else ROUNDS
    found = {"math": mathematics(rounds), "sandbox": sandboxes(rounds), "overlap": overlap(rounds)}
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


def overlap(rounds: int) -> dict[str, Any]:
    """Sampling the tiny family's answers alone, and with the grading of each as soon as it is finished."""
    keep_freed_memory()
    model = load_model(
        ModelSpec(model="builtin:code"), "model", device=torch.device("cpu"), dtype=torch.float32
    )
    source = SourceSection(files=("builtin:heldout.parquet",), keep_sources=("tiny/lists", "tiny/arithmetic"))
    data = prompt_set(source, model.tokenizer, "model", View(), limit=512)
    rows = [(i, n) for i in range(0, len(data), max(1, len(data) // PROBLEMS)) for n in range(SAMPLES)]
    sampler = TorchSampler(model.freeze(), 64)
    seconds: dict[str, list[float]] = {"sampling": [], "sampling and grading": []}
    for number in range(rounds):
        requests = [Request(data.ids[i], (number, i, n), TOKENS) for i, n in rows]
        for name in sorted(seconds, reverse=number % 2 == 0):
            start = time.perf_counter()
            with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:

                def finished(place: int, response: Response, pool: Any = pool, name: str = name) -> None:
                    prompt = data.prompts[rows[place][0]]
                    text = model.tokenizer.decode(response.ids, skip_special_tokens=True)
                    if name != "sampling":
                        pool.submit(grade_all, [(prompt.verifier, prompt.ground_truth, text)])

                sampler.sample(requests, SamplingSection(), lambda *_: None, finished)
            seconds[name].append(time.perf_counter() - start)
    ratio = median(b / a for a, b in zip(*seconds.values(), strict=True))
    shown = {f"{name}, s": median(values) for name, values in seconds.items()} | {"ratio": ratio}
    return {"seconds": seconds, "responses": len(rows), "shown": shown}
