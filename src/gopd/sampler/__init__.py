"""Sampling engines: prompts in, responses with the log-probs of their tokens out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gopd.sections import SamplingSection

Progress = Callable[[int, int, int], None]
"""Called now and then, between tokens, with (rows finished, rows in all, tokens drawn so far)."""


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to answer. `stream` keys the row's own random numbers: (seed, step, prompt, sample)."""

    prompt_ids: list[int]
    stream: tuple[int, ...]
    max_response_tokens: int


@dataclass(frozen=True, slots=True)
class Response:
    """Sampled ids with the end-of-sequence token, if `finished`, and their log-probs [R] at the temperature.

    `versions` says by which weights, where an engine can take new ones in between: (first token, version) of every
    change, from token 0 on.
    """

    ids: list[int]
    logprobs_R: Tensor
    finished: bool
    versions: list[tuple[int, int]] | None = None


Finished = Callable[[int, Response], None]
"""Called with a request's number and its response as soon as that is complete."""


def nothing(number: int, response: Response) -> None:
    """Waits for the end instead."""


class Sampler(Protocol):
    """What the loop needs of a sampling engine."""

    exact: bool
    """True: its log-probs are the trainer's own to rounding, so rollout correction weights are 1."""

    def sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingSection,
        progress: Progress,
        finished: Finished = nothing,
    ) -> list[Response]:
        """Answers every request, in order."""
        ...

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Takes the learner's new weights, those after step `version`, by their Hugging Face names."""
        ...
