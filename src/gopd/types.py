"""The things that flow between roles.

Axis suffixes on tensor names, used everywhere:

====  =======================================================
`_B`  rows of a batch (one rollout each)
`_R`  response tokens of one rollout, end-of-sequence included
`_T`  packed tokens: the rows of a micro-batch end to end
`_C`  the tokens of one chunk of a micro-batch
`_V`  vocabulary
`_D`  hidden width
====  =======================================================

Log-probs are natural logarithms in float32, of logits divided by the sampling temperature.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Message = Mapping[str, str]
"""One chat turn: `{"role": ..., "content": ...}`."""

VerifierName = Literal["math", "code", "none"]

Reason = Literal["right", "no-answer", "wrong", "error", "timeout", "output-limit", "too-long"]
"""Why a grader decided as it did: no finished answer, another answer, a program that failed, was too slow or printed
without end, an expression too long to compare."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A grader's decision. `answer` is what it took for the answer: the box's content, or the program.

    `base` is set by suites with two sets of tests (HumanEval+, MBPP+): whether the first, smaller one passed.
    """

    reason: Reason
    answer: str | None
    base: bool | None = None

    @property
    def right(self) -> bool:
        """Whether the answer counts."""
        return self.reason == "right"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row of the data.

    `where` is the row's place for error messages, as in `train.jsonl:17`; `index` its position among the
    rows kept, which keys its random stream. `fields` holds the raw row, for views that use extra columns.
    `response` is SFT's demonstration; `response_ended` is false where it was cut, so that no end is learned.
    """

    index: int
    where: str
    messages: tuple[Message, ...]
    data_source: str
    verifier: VerifierName
    ground_truth: str | None
    route: str | None
    response: str | None
    fields: Mapping[str, Any]
    response_ended: bool = True


@dataclass(slots=True)
class Rollout:
    """One response to a prompt, sampled by the student (or, for SFT, the demonstration).

    `response_ids` includes the end-of-sequence token when `finished`; otherwise the response was cut at the
    length limit. `sampler_logprobs_R` are the sampler's own log-probs of the response ids, over the whole
    vocabulary at the sampling temperature (before top-p/top-k); None for demonstrations. `versions` are the steps after
    which the weights that sampled it were taken, as (first token, step) of every change, where an engine tells.
    """

    prompt: Prompt
    sample: int
    prompt_ids: list[int]
    response_ids: list[int]
    sampler_logprobs_R: Tensor | None
    finished: bool
    text: str
    reward: float | None = None
    versions: list[tuple[int, int]] | None = None


class Hidden(Protocol):
    """Final hidden states (after the last norm) at the response tokens of one rollout, wherever they are kept."""

    def states(self) -> tuple[Tensor, Tensor | None]:
        """Those of the teacher [R, D] and of the reference [R, D], None where λ = 1."""
        ...


@dataclass(frozen=True, slots=True)
class HiddenHere:
    """Hidden states in this process."""

    teacher_RD: Tensor
    reference_RD: Tensor | None

    def states(self) -> tuple[Tensor, Tensor | None]:
        """Those of the teacher and of the reference."""
        return self.teacher_RD, self.reference_RD


@dataclass(frozen=True, slots=True)
class Scores:
    """What a rollout's own teacher, and that teacher's reference, say about its response.

    `reference_logprobs_R` and `log_partition_R` (log Z of T^λ R^(1-λ), per position) are None when λ = 1: no
    reference is consulted. The latter is None as well where teacher or reference is behind a server. Estimators that
    look at the whole vocabulary get hidden states instead of log-probs; the learner projects them with the scorer's
    heads and fills the log-probs in. With method grpo there is a reference only, and no route.
    """

    route: str | None
    reward_scale: float
    teacher_logprobs_R: Tensor | None = None
    reference_logprobs_R: Tensor | None = None
    log_partition_R: Tensor | None = None
    hidden: Hidden | None = None


@dataclass(frozen=True, slots=True)
class Surrogate:
    """PPO's clipped loss in place of the plain policy gradient, and a penalty on the distance from a reference.

    `old_logprobs_R` are the trainer's log-probs under the weights that sampled; None: those are the ones being updated,
    and the ratio is 1. `reference_logprobs_R` is there when `kl_weight` is above 0.
    """

    clip_low: float
    clip_high: float
    old_logprobs_R: Tensor | None = None
    kl_weight: float = 0.0
    reference_logprobs_R: Tensor | None = None


@dataclass(frozen=True, slots=True)
class TokenTerms:
    """What a method says about one rollout: the advantage of a token is `constant_R − own · ℓ_S`.

    `constant_R` does not depend on the student. With `sampler_logprobs_R` the tokens get rollout-correction weights.
    """

    constant_R: Tensor
    own: float
    sampler_logprobs_R: Tensor | None = None
    surrogate: Surrogate | None = None


@dataclass(frozen=True, slots=True)
class TokenReport:
    """What the update saw at every token of one rollout; float32 [R] on the CPU.

    `kl_R` is exact (`full`), a lower bound (`topk`) or one-sample unbiased (`sampled`); None without a teacher, or
    where log Z is not known.
    `ratio_R` and `clipped_R` are those of a surrogate off-policy, `reference_kl_R` its estimate of KL(S ‖ R).
    """

    student_logprobs_R: Tensor
    advantage_R: Tensor
    entropy_R: Tensor
    correction_R: Tensor | None
    kl_R: Tensor | None
    scores: Scores | None
    ratio_R: Tensor | None = None
    clipped_R: Tensor | None = None
    reference_kl_R: Tensor | None = None
