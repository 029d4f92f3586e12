"""Predicted against measured on a CPU: peak memory of real updates, each in a process of its own; exact operations.

`python experiments/plan/measure.py` writes `measured.json` beside this file; some minutes. `tests/test_plan.py` holds
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
    learner._backward(rollouts, none, terms, factors)
    return {"peak": memory.peak_memory_gb() * 1e9 - baseline, "baseline": baseline}


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


def main() -> None:
    rows = []
    for number, case in enumerate(CASES):
        row: dict[str, Any] = {"case": case.name, "budget": case.budget, "checkpointing": case.checkpointing}
        for how, environment in HOW.items():
            if how == "keep" and not case.keep:
                continue
            command = [sys.executable, __file__, str(number), how]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, env=os.environ | environment
            )
            row[how] = json.loads(done.stdout)["peak"]
        parts = predicted(case)
        row |= {"predicted": sum(parts.values()), "parts": parts}
        rows.append(row)
        (FOLDER / "measured.json").write_text(json.dumps({"memory": rows}, indent=1) + "\n")
        off = {how: f"{row['predicted'] / row[how] - 1:+.1%}" for how in HOW if how in row}
        print(
            f"{case.name}, {case.budget} tokens: {row['predicted'] / 1e6:.0f} MB predicted", off, flush=True
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]), sys.argv[2] == "keep")))
    else:
        main()
