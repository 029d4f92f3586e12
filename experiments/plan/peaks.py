"""Predicted against measured on a CPU: peak memory of real updates, each in a process of its own; exact operations.

`python experiments/plan/peaks.py` writes `measured.json` beside this file; some minutes. `tests/test_plan.py` holds
the file against the predictions of the present code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
LLAMA = {
    "model_type": "llama",
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
}
SMOLLM2 = LLAMA | {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
}
TINY = {
    "model_type": "qwen3",
    "vocab_size": 512,
    "hidden_size": 192,
    "intermediate_size": 416,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "tie_word_embeddings": True,
}
MIDDLE = TINY | {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1792,
    "num_hidden_layers": 10,
    "num_attention_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": False,
}


HOW: dict[str, dict[str, str]] = {"tensors": {"MALLOC_MMAP_THRESHOLD_": "65536"}, "keep": {}}
"""tensors: glibc maps every array by itself and gives it back at once, so the process holds what is alive. keep: as
`gopd train` has it, where freed memory stays for the next arrays."""


@dataclass(frozen=True)
class Case:
    """Updates of a random model: rows of `prompt` + `response` tokens, `budget` packed tokens at a time."""

    name: str
    config: dict[str, Any]
    budget: int
    checkpointing: bool
    keep: bool = False
    """Also measured as `gopd train` has it."""
    prompt: int = 96
    response: int = 417
    """One token of it is never fed: rows of 512."""


CASES = [
    Case("tiny family", TINY, 4096, False),
    Case("tiny family", TINY, 16384, False, keep=True),
    Case("tiny family, checkpointing", TINY, 16384, True),
    Case("random Qwen3, 64M, head of its own", MIDDLE, 2048, False, keep=True),
    Case("random Qwen3, 64M, head of its own", MIDDLE, 8192, False),
    Case("random Qwen3, 64M, head of its own, checkpointing", MIDDLE, 8192, True),
    Case("SmolLM2-135M's shape", SMOLLM2, 1024, False, keep=True),
    Case("SmolLM2-135M's shape", SMOLLM2, 4096, False, keep=True),
    Case("SmolLM2-135M's shape, checkpointing", SMOLLM2, 4096, True),
]


def measure(number: int, keep: bool) -> dict[str, Any]:
    """The second micro-batch of the second update, in this process: gradients and moments are there. Bytes.

    The micro-batches before it have a single row, to save time.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gopd import attention, memory
    from gopd.learner import Learner
    from gopd.model import LanguageModel
    from gopd.recipe_file import parse_recipe
    from gopd.types import Prompt, Rollout, TokenTerms

    case = CASES[number]
    torch.set_num_threads(1)
    if keep:
        memory.keep_freed_memory()
    warm = torch.nn.Linear(64, 64)
    warm(torch.randn(8, 64)).sum().backward()
    torch.optim.AdamW(warm.parameters(), fused=True).step()
    tree = {
        "method": "sft",
        "student": {"model": "random", "gradient_checkpointing": case.checkpointing},
        "data": {"files": ["rows.jsonl"]},
        "train": {"steps": 1, "tokens_per_micro_batch": case.budget},
    }
    config = AutoConfig.for_model(**case.config)
    module = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention.NAME)
    del warm
    memory.restart_peak()
    weights = sum(p.nbytes for p in module.parameters())
    baseline = memory.peak_memory_gb() * 1e9 - weights
    student = LanguageModel(module.eval(), None, case.name)  # type: ignore[arg-type]
    learner = Learner(parse_recipe(tree), student, total_steps=2, aggregation="token-mean")
    # A row counts in full for the budget, though its last token is never fed.
    rows = case.budget // (case.prompt + case.response)
    generator = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        return torch.randint(config.vocab_size, (count,), generator=generator).tolist()

    prompt = Prompt(0, "", (), "", "none", None, None, None, {})
    rollouts = [
        Rollout(prompt, i, draw(case.prompt), draw(case.response), None, True, "", None) for i in range(rows)
    ]
    terms = [TokenTerms(torch.ones(case.response), 0.0, None) for _ in rollouts]
    none = [None] * rows
    learner.update(rollouts[:1], none[:1], terms[:1])
    factors = torch.ones(rows)
    student.module.train(case.checkpointing)  # as in an update
    learner._backward(rollouts[:1], none[:1], terms[:1], factors[:1])
    memory.restart_peak()
    for _ in range(3 if keep else 1):  # kept memory grows until every size has found its place
        learner._backward(rollouts, none, terms, factors)
    return {"peak": memory.peak_memory_gb() * 1e9 - baseline, "baseline": baseline}


def measure_scoring(number: int) -> dict[str, Any]:
    """A teacher and its reference, two random models of a case's shape, score one micro-batch. Bytes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from gopd import attention, memory
    from gopd.logprobs import Target
    from gopd.model import LanguageModel
    from gopd.packing import pack

    case = CASES[number]
    torch.set_num_threads(1)
    config = AutoConfig.for_model(**case.config)
    memory.restart_peak()
    baseline = memory.peak_memory_gb() * 1e9
    how: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": attention.NAME}
    models = [AutoModelForCausalLM.from_config(config, **how).eval() for _ in range(2)]
    rows = case.budget // (case.prompt + case.response)
    packed = pack([[1] * case.prompt] * rows, [[2] * case.response] * rows, torch.device("cpu"))
    seats = [LanguageModel(m, None, case.name).freeze() for m in models]  # type: ignore[arg-type]

    def score() -> None:
        with torch.no_grad():
            Target(*(seat.project(packed) for seat in seats), reward_scale=1.25).score(packed.targets_T, 1.0)

    score()
    memory.restart_peak()
    score()
    return {"peak": memory.peak_memory_gb() * 1e9 - baseline}


def predicted_scoring(case: Case) -> float:
    from transformers import AutoConfig

    from gopd.plan.memory import scoring_memory
    from gopd.plan.sizes import sizes_of

    sizes = sizes_of(AutoConfig.for_model(**case.config), case.name, "random", 4)
    rows = case.budget // (case.prompt + case.response)
    tokens = rows * (case.prompt + case.response - 1)
    return sum(scoring_memory([sizes, sizes], 4, tokens, rows * case.response).values())


def predicted(case: Case) -> dict[str, float]:
    """The same by `gopd plan`'s formulas, part by part."""
    from transformers import AutoConfig

    from gopd.plan.memory import Numerics, update_memory
    from gopd.plan.sizes import sizes_of

    sizes = sizes_of(AutoConfig.for_model(**case.config), case.name, "random", 4)
    rows = case.budget // (case.prompt + case.response)
    return update_memory(
        sizes,
        Numerics(4),
        tokens=rows * (case.prompt + case.response - 1),
        predicted=rows * case.response,
        checkpointing=case.checkpointing,
    )


SCORED = (1, 3, 4, 7)
"""Cases whose models also score."""


def run(number: int, how: str) -> float:
    """Peak in a process of its own."""
    environment = os.environ | HOW["keep" if how == "keep" else "tensors"]
    command = [sys.executable, __file__, str(number), how]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(done.stdout)["peak"])


def main() -> None:
    rows, scoring = [], []
    for number, case in enumerate(CASES):
        row: dict[str, Any] = {"case": case.name, "budget": case.budget, "checkpointing": case.checkpointing}
        parts = predicted(case)
        row |= {"tensors": run(number, "tensors"), "predicted": sum(parts.values()), "parts": parts}
        row |= {"keep": run(number, "keep")} if case.keep else {}
        rows.append(row)
        print(row, flush=True)
        if number in SCORED:
            found = {"predicted": predicted_scoring(case), "tensors": run(number, "scoring")}
            scoring.append({"number": number, "case": case.name, "budget": case.budget} | found)
            print(scoring[-1], flush=True)
        (FOLDER / "measured.json").write_text(
            json.dumps({"memory": rows, "scoring": scoring}, indent=1) + "\n"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        number, how = int(sys.argv[1]), sys.argv[2]
        print(json.dumps(measure_scoring(number) if how == "scoring" else measure(number, how == "keep")))
    else:
        main()
