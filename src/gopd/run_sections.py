"""The sections of a recipe that say how a run goes: strict, typed and frozen. No torch here.

`docs/recipe.md` explains every key.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from gopd.section import NonNegative, Positive, Section


class GuardSection(Section):
    """Optimizer steps that are refused: always where loss or gradient are not finite, else where they pass a bound.

    A refused step leaves weights, optimizer and schedule as they were, to the bit.
    """

    action: Literal["stop", "skip"] = "stop"
    """stop: the run ends with an error; skip: it goes on with the next batch."""
    loss: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    """Largest loss, as a multiple of its running median. Only for losses that measure a distance (topk, full, SFT)."""
    grad_norm: float | None = Field(default=None, gt=1, allow_inf_nan=False)
    """Largest norm of the gradient before clipping, as a multiple of its running median."""
    kl: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Largest mean KL of a batch, nats per token: to the target, with method grpo to the reference."""
    patience: NonNegative = 3
    """How many optimizer steps in a row may be skipped; one more ends the run."""


class TrainSection(Section):
    """Size and length of the run."""

    steps: Positive | None = None
    epochs: Positive | None = None
    prompts_per_step: Positive = 1024
    mini_batches: Positive = 1
    """Optimizer steps per batch of rollouts; with more than one, later ones are off-policy and are corrected."""
    passes: Positive = 1
    """How often each batch of rollouts is gone through; again, later optimizer steps are off-policy."""
    max_staleness: NonNegative = 0
    """How many optimizer steps older than the newest the weights that sample may be; above 0 sampling and training
    overlap, which needs `--cluster`."""
    tokens_per_micro_batch: Positive = 16384
    """Packed tokens (prompt + response) per forward; a longer row gets a micro-batch of its own."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on GPU, float32 on CPU. Master weights are float32 either way."""
    allow_unsandboxed: bool = False
    """Run the programs of responses even where nothing keeps them apart from the machine."""

    @model_validator(mode="after")
    def _length(self) -> TrainSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give one of train.steps and train.epochs")
        if self.prompts_per_step % self.mini_batches:
            raise ValueError(
                f"prompts_per_step ({self.prompts_per_step}) must be a multiple of mini_batches ({self.mini_batches})"
            )
        return self


class ClusterSection(Section):
    """What `gopd train --cluster` starts, and how it is watched. `docs/scaling.md` walks through it."""

    learner_ranks: Positive = 1
    """Processes, one device each, that the learner is sharded over (FSDP2)."""
    sampler_replicas: Positive = 1
    """Engines; with vLLM each takes `sampler.vllm.tensor_parallel` devices."""
    scorers_per_teacher: Positive = 1
    """Processes, one device each, that hold a teacher and its reference."""
    colocate: bool = False
    """Learner, samplers and scorers share devices and take turns; otherwise each has its own."""
    offload: bool = False
    """Keep the learner's parameters and optimizer state in host memory between uses."""
    max_restarts: NonNegative = 3
    """How often the job starts again from its last checkpoint when a learner rank or the driver is lost."""
    timeout: float = Field(default=1800.0, gt=0)
    """Seconds without an answer to a call after which an actor counts as hung, and is replaced."""
    heartbeat: float = Field(default=60.0, gt=0)
    """The same for the ping that a process answers while it works."""


class CheckpointSection(Section):
    """What is kept to resume from, and which student is exported."""

    every: NonNegative = 10
    """Steps between checkpoints; 0: only the last."""
    keep_last: Positive = 2
    keep_best: bool = False
    """Keep the checkpoint with the highest validation accuracy as well; every new best is saved."""


class TrackingSection(Section):
    """Where results go."""

    folder: str = "runs"
    project: str = "gopd"
    name: str | None = None
    """Run name; None: the recipe's file name."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    rollouts_every: NonNegative = 1
    """Steps between Parquet files of rollouts with per-token numbers; 0: none."""
    rollouts_limit: Positive = 64
    """At most so many rollouts per file."""
    show_generations: NonNegative = 0
    """Responses printed per validation."""
    profile: bool = False
    """Print where the steps' time and memory went, against what the machine can do."""
