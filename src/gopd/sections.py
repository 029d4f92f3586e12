"""The sections of a recipe that say what learns from what: strict, typed and frozen. No torch here.

Defaults are the published G-OPD settings (Yang et al. 2026, arXiv 2602.12125). `docs/recipe.md` explains every key.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from gopd.section import Decay, NonNegative, Positive, Section

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"]
Estimator = Literal["sampled", "topk", "full"]
Engine = Literal["torch", "vllm"]
Overlong = Literal["drop", "truncate", "error"]


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
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
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
