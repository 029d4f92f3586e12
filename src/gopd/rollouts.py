"""Prompts become rollouts: rendering, sampling, grading; the same for training and validation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from gopd import sandbox, views
from gopd.data import load_prompts
from gopd.errors import BadInput
from gopd.model import Description, LanguageModel
from gopd.sampler import Progress, Request, Response, Sampler, nothing
from gopd.sections import Overlong, SamplingSection, SourceSection, View
from gopd.types import Prompt, Rollout
from gopd.verify import grade_all

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptSet:
    """Prompts with their token ids as one model sees them."""

    prompts: list[Prompt]
    ids: list[list[int]]

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, rows: Sequence[int]) -> PromptSet:
        """Some of them, by their places."""
        return PromptSet([self.prompts[i] for i in rows], [self.ids[i] for i in rows])


def prompt_set(
    source: SourceSection,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    view: View,
    *,
    routes: Sequence[str] = (),
    limit: int,
    overlong: Overlong = "drop",
    need_response: bool = False,
) -> PromptSet:
    """Loads rows and renders them as the model `name` sees them, at most `limit` tokens each. Raises BadInput."""
    prompts = load_prompts(source, routes=routes, need_response=need_response)
    views.check_view(view, tokenizer, name)
    prompts, ids, report = views.fit(prompts, views.render(view, prompts, tokenizer), limit, overlong)
    if report.dropped or report.truncated:
        log.warning(
            "%d of %d prompts are longer than %d tokens: %d dropped, %d cut",
            report.dropped + report.truncated,
            report.kept + report.dropped,
            limit,
            report.dropped,
            report.truncated,
        )
    return PromptSet(prompts, ids)


def check_context(
    model: LanguageModel | Description, ids: Sequence[Sequence[int]], max_response_tokens: int
) -> None:
    """BadInput when the longest prompt and a full response do not fit the model's context."""
    longest = max(map(len, ids))
    if longest + max_response_tokens > model.context_length:
        raise BadInput(
            f"{model.name}: a prompt of {longest} tokens and a response of {max_response_tokens} exceed its context of "
            f"{model.context_length}; lower data.max_response_tokens or data.max_prompt_tokens"
        )


def check_sandbox(prompts: Sequence[Prompt], *, allow_unsandboxed: bool) -> None:
    """BadInput when there are programs to grade, and nothing to keep them apart from the machine."""
    if allow_unsandboxed:
        sandbox.allow_unsandboxed()
    if any(prompt.verifier == "code" for prompt in prompts):
        sandbox.isolation()


Rolled = Callable[[int, Rollout], None]
"""Called with a rollout's place in the batch as soon as it is finished."""


def sample_rollouts(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    batch: PromptSet,
    sampling: SamplingSection,
    *,
    samples: int,
    max_response_tokens: int,
    stream: tuple[int, ...],
    progress: Progress,
    finished: Rolled | None = None,
) -> list[Rollout]:
    """`samples` responses to every prompt. `stream` starts the key of every row's random numbers."""
    work = [(p, ids, n) for p, ids in zip(batch.prompts, batch.ids, strict=True) for n in range(samples)]
    requests = [Request(ids, (*stream, p.index, n), max_response_tokens) for p, ids, n in work]

    def rollout(number: int, response: Response) -> Rollout:
        prompt, ids, sample = work[number]
        (text,) = tokenizer.batch_decode([response.ids], skip_special_tokens=True)
        return Rollout(
            prompt,
            sample,
            ids,
            response.ids,
            response.logprobs_R,
            response.finished,
            text,
            versions=response.versions,
        )

    def hand_on(number: int, response: Response) -> None:
        assert finished is not None
        finished(number, rollout(number, response))

    responses = sampler.sample(requests, sampling, progress, nothing if finished is None else hand_on)
    return [rollout(number, response) for number, response in enumerate(responses)]


def grade(rollouts: Sequence[Rollout]) -> None:
    """Sets every rollout's reward: 1 or 0 by its verifier, None without one."""
    items = [(r.prompt.verifier, r.prompt.ground_truth, r.text) for r in rollouts]
    for rollout, reward in zip(rollouts, grade_all(items), strict=True):
        rollout.reward = reward


def demonstrations(
    data: PromptSet, tokenizer: PreTrainedTokenizerBase, name: str, limit: int
) -> list[Rollout]:
    """Rows with responses as rollouts, for SFT: the response's tokens and, if it ended, the end-of-sequence token."""
    encoded = views.encode(tokenizer, [p.response or "" for p in data.prompts])
    eos = tokenizer.eos_token_id
    if eos is None:
        raise BadInput(f"{name}: its tokenizer names no end-of-sequence token to train on")
    rollouts, cut = [], 0
    for prompt, prompt_ids, ids in zip(data.prompts, data.ids, encoded, strict=True):
        assert prompt.response is not None
        fits = len(ids) < limit
        whole = fits and prompt.response_ended
        cut += not fits
        response_ids = [*ids, eos] if whole else ids[:limit]
        if not response_ids:
            raise BadInput(
                f"{prompt.where}: the response has no token to learn from, as its text has none and it did not end; "
                "leave the row out"
            )
        rollouts.append(Rollout(prompt, 0, prompt_ids, response_ids, None, whole, prompt.response))
    if cut:
        log.warning(
            "%d of %d demonstrations are longer than %d tokens and were cut", cut, len(rollouts), limit
        )
    return rollouts
