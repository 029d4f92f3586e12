"""The sections of a recipe: strict, typed and frozen. No torch here.

Defaults are the published G-OPD settings (Yang et al. 2026, arXiv 2602.12125). `docs/recipe.md` explains every key.
"""

from __future__ import annotations

import re
import typing
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
Estimator = Literal["sampled", "topk", "full"]
Engine = Literal["torch", "vllm"]
Overlong = Literal["drop", "truncate", "error"]
Positive = typing.Annotated[int, Field(gt=0)]
NonNegative = typing.Annotated[int, Field(ge=0)]
Decay = typing.Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Base of all recipe sections: immutable, unknown keys refused, no silent type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class View(Section):
    """How a model sees the prompt. Only the prompt is rendered anew; response ids are never changed."""

    system: str | None = None
    """System text put before the chat; replaces one that the row brings."""
    template: str = "{prompt}"
    """Text of the last user turn. `{prompt}` is the row's own text, `{column}` or `{a.b}` any field of the row."""
    suffix: str = ""
    """Text added to the last user turn, as in the published math and code instructions."""
    enable_thinking: bool | None = None
    """Passed to the chat template when set (Qwen3's thinking switch)."""
    chat_template_kwargs: dict[str, Any] = {}
    """Further variables for the chat template."""


class ModelSpec(Section):
    """A model folder, a Hub name, or `builtin:NAME` for a model that ships with the package."""

    model: str
    revision: str | None = None
    trust_remote_code: bool = False


class RemoteSection(Section):
    """A vLLM server that scores in a model's place; the model's own tokenizer and configuration are still needed."""

    url: str
    """As in `http://host:8000`; no user, password or query, as the URL is printed and written to the run folder."""
    name: str | None = None
    """What the server calls the model; None: as in `model`."""
    timeout: float = Field(default=300.0, gt=0)
    """Seconds to wait for an answer."""
    retries: NonNegative = 5
    """Further attempts where the server is not there, too slow or too busy, with growing pauses."""
    concurrency: Positive = 16
    """Requests under way at a time."""
    tolerance: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    """By how much, in nats, the log-prob of one token may differ when it is asked for again."""
    api_key_env: str | None = None
    """Environment variable that holds the key, if the server wants one."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        if not re.fullmatch(r"https?://[^/?#@]+(/[^?#]*)?", url):
            raise ValueError(
                "expected http://HOST:PORT without user, password or query; server.api_key_env names the environment "
                "variable that holds a key"
            )
        return url


class FrozenSection(ModelSpec):
    """A model that scores and is not trained."""

    view: View | None = None
    """None: the student's view."""
    server: RemoteSection | None = None


class ReferenceSection(FrozenSection):
    """A reference other than the student's initial weights, e.g. the teacher's pre-RL base."""


class TeacherSection(FrozenSection):
    """One teacher. What is None is taken from the recipe's general setting."""

    reward_scale: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    reference: ReferenceSection | None = None


class LoraSection(Section):
    """Low-rank adapters by PEFT. The reference is then the base with adapters off, not a second copy."""

    rank: Positive = 32
    alpha: float = Field(default=64.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class StudentSection(ModelSpec):
    """The model that is trained."""

    view: View = View()
    lora: LoraSection | None = None
    gradient_checkpointing: bool = False


class ObjectiveSection(Section):
    """The G-OPD objective. `docs/objective.md` derives it."""

    estimator: Estimator = "sampled"
    reward_scale: float = Field(default=1.25, ge=0, allow_inf_nan=False)
    top_k: Positive = 64
    """Size of the student's top-k set; used by `estimator: topk` only."""
    control_variate: bool = False
    """`sampled` only: subtract the closed-form mean of the advantage under the student."""
    reward_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of GRPO's advantage (section `grpo`) beside the teacher's; 0: rewards are only logged."""
    aggregation: Aggregation = "seq-mean-token-mean"

    @model_validator(mode="after")
    def _coherent(self) -> ObjectiveSection:
        if self.estimator != "sampled" and self.control_variate:
            raise ValueError(f"control_variate belongs to estimator 'sampled', not {self.estimator!r}")
        if self.estimator != "sampled" and self.reward_weight > 0:
            raise ValueError(
                f"reward_weight needs estimator 'sampled': {self.estimator!r} has no sampled-token term"
            )
        return self


class GrpoSection(Section):
    """Group-relative policy optimisation on verifier rewards. `docs/objective.md` has the formulas."""

    normalize: bool = True
    """Divide a group's advantages by the standard deviation of its rewards."""
    clip_low: float = Field(default=0.2, ge=0, lt=1)
    clip_high: float = Field(default=0.2, ge=0)
    """PPO's clipping of the ratio to the weights that sampled: between 1 − clip_low and 1 + clip_high."""
    kl_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of the KL to the reference (k3 estimate) in the loss; 0: no reference is loaded."""
    drop_uniform: bool = False
    """Leave out groups whose rewards are all equal, as if they had not been sampled; otherwise they count as zeros."""
    aggregation: Aggregation = "seq-mean-token-mean"


class CorrectionSection(Section):
    """Rollout correction: weights for tokens whose sampler log-prob differs from the trainer's."""

    mode: Literal["auto", "off"] = "auto"
    """auto: applied whenever sampler and trainer can differ; off: never."""
    level: Literal["token", "sequence"] = "token"
    cap: float = Field(default=5.0, gt=0)
    beyond: Literal["truncate", "mask"] = "truncate"
    """What happens to weights above `cap`: cut to it, or the tokens dropped."""


class SamplingSection(Section):
    """How responses are drawn."""

    temperature: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: NonNegative = 0
    """0: no limit."""


class ScoringSection(Section):
    """How teachers and references share memory."""

    memory_gb: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Memory for the weights of teachers and references, in 10^9 bytes; models beyond it take turns. None: no limit."""


class VllmSection(Section):
    """How vLLM is set up; `sampler.engine: vllm` only."""

    tensor_parallel: Positive = 1
    """Devices that one engine spreads its weights over."""
    memory_share: float = Field(default=0.9, gt=0, le=1)
    """Share of a device's memory for weights and key-value cache; on a CPU, of the memory that is free at start."""
    max_batched_tokens: Positive = 8192
    """Tokens that one engine step computes at most; longer prompts come in pieces."""
    max_sequences: Positive = 256
    """Rows that decode side by side."""
    eager: bool = True
    """Start in seconds, without compiling the model first."""
    sleep: bool = False
    """Give the device's memory back while others compute; for engines that share a GPU with the learner."""
    in_flight_updates: bool = False
    """Take new weights in the middle of responses, as soon as there are any; with `train.max_staleness` above 0."""

    @model_validator(mode="after")
    def _awake_in_flight(self) -> VllmSection:
        if self.in_flight_updates and self.sleep:
            raise ValueError(
                "in_flight_updates is for engines that sample while the learner trains, and sleep for those that take "
                "turns with it; choose one"
            )
        return self


class SamplerSection(SamplingSection):
    """The engine that draws the student's responses."""

    engine: Engine = "torch"
    """torch: decodes with the learner's own weights; vllm: an engine of its own, brought up to date after each step."""
    samples_per_prompt: Positive = 1
    slots: Positive = 64
    """Rows that decode side by side with engine torch; a finished row's slot is refilled."""
    vllm: VllmSection = VllmSection()


class Columns(Section):
    """Which column holds what; dotted names reach into nested fields. Defaults are the published schema."""

    prompt: str = "prompt"
    """A chat list or a string (then one user turn)."""
    ground_truth: str = "reward_model.ground_truth"
    data_source: str = "data_source"
    route: str = "extra_info.opd_teacher"
    response: str = "response"
    """For SFT the demonstration; otherwise a reference solution, which `gopd doctor` grades."""
    finished: str = "finished"
    """SFT only: false where a demonstration was cut, so that no end of sequence is learned; absent: it ended."""


class SourceSection(Section):
    """Rows from local files (Parquet, JSONL, JSONL.gz) or a Hub dataset; one of the two."""

    files: tuple[str, ...] = ()
    hub: str | None = None
    hub_config: str | None = None
    split: str = "train"
    columns: Columns = Columns()
    data_source: str | None = None
    """Value for rows that have no data_source column."""
    route: str | None = None
    """Teacher for rows that have no route column. With one teacher it may be left out."""
    verifier: Literal["auto", "math", "code", "none"] = "auto"
    """auto: chosen by data_source."""
    ground_truth_after: str | None = None
    """Keep only what follows the last occurrence of this text in the ground truth (GSM8K: `####`)."""
    keep_sources: tuple[str, ...] = ()
    """Use only rows of these data sources; none named: all rows."""
    limit: Positive | None = None
    """Use only the first so many of the rows."""


class DataSection(SourceSection):
    """Training rows."""

    max_prompt_tokens: Positive = 2048
    max_response_tokens: Positive = 16384
    overlong: Overlong = "drop"
    """Prompts longer than the limit: dropped with a count, cut from the left, or an error."""
    shuffle: bool = True


class ValidationSection(SourceSection):
    """Held-out rows; sampled and graded every so many steps, with the exact KL to the target."""

    every: NonNegative = 10
    """Steps between validations; 0: only before and after."""
    before_training: bool = True
    teachers: bool = False
    """Also measure every teacher, once, before training."""
    samples_per_prompt: Positive = 1
    sampling: SamplingSection = SamplingSection()
    max_response_tokens: Positive | None = None
    """None: as in training."""


class OptimSection(Section):
    """AdamW."""

    lr: float = Field(default=1e-5, gt=0, allow_inf_nan=False)
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)
    warmup_steps: NonNegative = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After warm-up: constant, or decay that would reach zero one step after the last."""


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
