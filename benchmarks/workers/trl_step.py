"""Whole steps of TRL's on-policy distillation on the same models, prompts and token counts: a turn is a step.

`stable` is `trl.DistillationTrainer` with beta=1: reverse KL over the whole vocabulary. `sampled` is
`trl.experimental.iw_opd` reduced to the plain sampled-token policy gradient of the reverse KL. Settings are TRL's
best on a CPU of those tried: float32, no gradient checkpointing, one micro-batch, SDPA attention.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from turns import Stage


class Turns(TrainerCallback):
    """Waits for its turn before each step, and answers with the step's figures."""

    def __init__(self, stage: Stage, spent: dict[str, float], drawn: list[int]) -> None:
        self.stage, self.spent, self.drawn = stage, spent, drawn
        self.started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if self.stage.await_turn() is None:
            sys.exit()
        self.spent.clear()
        self.drawn.clear()
        self.started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.stage.answer(
            seconds=time.perf_counter() - self.started,
            tokens=sum(self.drawn),
            spent=dict(self.spent),
            peak_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["stable", "sampled"])
    parser.add_argument("student", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("rows", type=Path, help="JSONL with a chat list in `prompt`")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--endless", action="store_true", help="no end-of-sequence token")
    options = parser.parse_args()
    stage = Stage()
    trainer = build(options)
    if options.endless:
        trainer.generation_config.eos_token_id = None
    spent, drawn = defaultdict(float), list[int]()
    time_phases(trainer, options.kind, spent, drawn)
    trainer.add_callback(Turns(stage, spent, drawn))
    trainer.train()


def build(options: argparse.Namespace) -> Any:
    rows = [json.loads(line)["prompt"] for line in options.rows.read_text().splitlines()]
    rows = rows[: options.batch * options.steps]
    tokenizer = AutoTokenizer.from_pretrained(options.student, padding_side="left")
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        for folder in (options.student, options.teacher)
    )
    common: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(),
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": 1,
        "max_steps": options.steps,
        "learning_rate": 1e-5,
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "fp16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "max_completion_length": options.tokens,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "disable_tqdm": True,
    }
    if options.kind == "stable":
        from trl import DistillationConfig, DistillationTrainer

        return DistillationTrainer(
            model=student,
            teacher_model=teacher,
            args=DistillationConfig(**common, beta=1.0),
            train_dataset=Dataset.from_dict({"prompt": rows}),
            processing_class=tokenizer,
        )
    from trl.experimental.iw_opd import IWOPDConfig, IWOPDTrainer

    trainer = IWOPDTrainer(
        model=student,
        teacher_model=teacher,
        args=IWOPDConfig(
            **common,
            max_length=1024,
            lmbda=1.0,
            beta=1.0,
            loss_top_k=1,
            distillation_objective="iw_opd",
            iw_opd_gamma=0.0,
            num_generations=1,
        ),
        train_dataset=Dataset.from_dict({"messages": rows}),
        processing_class=tokenizer,
    )
    # Otherwise tokens are counted in the data's labels, of which prompts have none: the loss is −inf.
    trainer.model_accepts_loss_kwargs = False
    return trainer


def time_phases(trainer: Any, kind: str, spent: dict[str, float], drawn: list[int]) -> None:
    """Wraps the trainer's own calls in clocks."""

    def timed(owner: Any, name: str, phase: str) -> None:
        call: Callable[..., Any] = getattr(owner, name)

        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = call(*args, **kwargs)
            spent[phase] += time.perf_counter() - start
            return result

        setattr(owner, name, clocked)

    generate = trainer.model.generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        result = generate(*args, **kwargs)
        ids = result if torch.is_tensor(result) else result.sequences
        prompts = kwargs["input_ids"].shape[1]
        ends = trainer.generation_config.eos_token_id
        drawn.append(useful(ids[:, prompts:], ends))
        return result

    trainer.model.generate = counted
    timed(trainer.model, "generate", "generate")
    teacher = trainer.teacher_model if kind == "sampled" else trainer.teacher_model.base_model
    timed(teacher, "forward", "teacher")
    timed(trainer, "compute_loss", "student forward, teacher and loss")
    timed(trainer.accelerator, "backward", "backward")


def useful(ids: torch.Tensor, ends: int | list[int] | None) -> int:
    """Tokens up to and with each row's end-of-sequence token."""
    if ends is None:
        return ids.numel()
    ended = torch.isin(ids, torch.tensor(ends))
    before = ended.cumsum(-1) - ended.long()
    return int((before == 0).sum())


if __name__ == "__main__":
    main()
