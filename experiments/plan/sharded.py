"""Peak memory of each of two ranks that share a model by FSDP2 (gloo, this CPU), against `gopd plan`: `sharded.json`.

`python experiments/plan/sharded.py`; a minute. Blocks and the rest of the model are sharded as the learner does it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peaks import HOW, MIDDLE, SMOLLM2

FOLDER = Path(__file__).parent
RANKS = 2
CASES: list[tuple[str, dict[str, Any], int]] = [
    ("random Qwen3, 64M, head of its own", MIDDLE, 1024),
    ("SmolLM2-135M's shape", SMOLLM2, 1024),
]


def rank(number: int, case: int) -> float:
    """Bytes at the worst moment of the second micro-batch of a second update, on this rank."""
    import torch
    import torch.distributed as dist
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
    from transformers import AutoConfig, AutoModelForCausalLM

    from gopd import attention, memory
    from gopd.attention import PackedLayout
    from gopd.logprobs import Chunk, Projection, linear_loss

    class Root(torch.nn.Module):
        def __init__(self, module: torch.nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, call: Callable[[], torch.Tensor]) -> torch.Tensor:
            return call()

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=number, world_size=RANKS)
    _, tree, tokens = CASES[case]
    config = AutoConfig.for_model(**tree)
    dist.barrier()
    memory.restart_peak()
    baseline = memory.peak_memory_gb() * 1e9
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention.NAME)
    root = Root(model.eval())
    for part in (*model.model.layers, root):
        fully_shard(part, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    optimizer = torch.optim.AdamW(root.parameters(), fused=True)

    def likelihood(chunk: Chunk) -> tuple[torch.Tensor, torch.Tensor]:
        return -chunk.logprobs_CV[:, 0], chunk.probs_CV

    def backward(rows: int) -> None:
        ids = torch.randint(config.vocab_size, (1, 512 * rows))
        positions = torch.arange(512).repeat(rows)[None]

        def loss() -> torch.Tensor:
            layout = PackedLayout([512] * rows)
            out = model.model(input_ids=ids, position_ids=positions, use_cache=False, layout=layout)
            return linear_loss(Projection(out.last_hidden_state[0], model.lm_head.weight), likelihood, 1.0)

        root(loss).backward()

    backward(1)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    backward(1)
    memory.restart_peak()
    backward(tokens // 512)
    return memory.peak_memory_gb() * 1e9 - baseline


def predicted(case: int) -> float:
    from transformers import AutoConfig

    from gopd.plan.memory import Numerics, update_memory
    from gopd.plan.sizes import sizes_of

    name, tree, tokens = CASES[case]
    sizes = sizes_of(AutoConfig.for_model(**tree), name, "random", 4)
    numerics = Numerics(4, RANKS, sharded=True)
    settings: dict[str, Any] = {"tokens": tokens, "predicted": tokens, "checkpointing": False}
    return sum(update_memory(sizes, numerics, **settings).values())


def main() -> None:
    rows = []
    for case, (name, _, tokens) in enumerate(CASES):
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29650 + case)}
        environment = os.environ | HOW["tensors"] | meet
        commands = [[sys.executable, __file__, str(number), str(case)] for number in range(RANKS)]
        started = [subprocess.Popen(c, env=environment, stdout=subprocess.PIPE, text=True) for c in commands]
        peaks = [float(process.communicate()[0].splitlines()[-1]) for process in started]
        row = {"case": name, "budget": tokens, "predicted": predicted(case), "peaks": peaks}
        rows.append(row)
        print(row, f"{row['predicted'] / max(peaks) - 1:+.1%}", flush=True)
    (FOLDER / "sharded.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(rank(int(sys.argv[1]), int(sys.argv[2])))
    else:
        main()
