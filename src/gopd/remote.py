"""Scoring by a vLLM server: log-probs of given tokens over HTTP (`prompt_logprobs` of `/v1/completions`).

vLLM takes these from the plain logits, at temperature 1, whatever sampling parameters a request has. A request also
asks for one generated token, which is thrown away: servers refuse to generate none.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

import httpx
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from gopd.errors import BadInput, RunFailed
from gopd.masking import MASK
from gopd.model import Description
from gopd.sections import RemoteSection

BACKOFF = 0.5
"""Seconds before the first retry; each further pause is twice as long, up to LONGEST_PAUSE, give or take a half."""
LONGEST_PAUSE = 30.0
REPEATS = 4
"""How often the self-test scores one sequence alone, and again beside others."""
TEXT = "the quick brown fox jumps over the lazy dog, and 12 + 30 = 42; so what is 6 * 7? "
"""What it scores."""
SPREAD = 256
"""How many ids from all over the vocabulary it looks at."""
MINUS_INFINITY = -9999.0
"""What vLLM writes for it, as JSON has none."""


class _Token(BaseModel):
    logprob: float
    decoded_token: str | None = None


class _Choice(BaseModel):
    prompt_logprobs: list[dict[int, _Token] | None] | None = None


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class _Model(BaseModel):
    id: str
    max_model_len: int | None = None


class _Models(BaseModel):
    data: list[_Model]


class _Tokens(BaseModel):
    tokens: list[int]


Answer = TypeVar("Answer", bound=BaseModel)
Result = TypeVar("Result")


class Refused(RunFailed):
    """The server is there and does not do what it is asked."""


class Server:
    """A model behind a URL. `role` is what messages call it, `model` its name where the recipe gives no other.

    A context manager that holds connections, and a thread for all requests; everything else happens inside. Leaving it
    ends requests that are still under way.
    """

    _client: httpx.AsyncClient
    _places: asyncio.Semaphore
    _loop: asyncio.AbstractEventLoop
    _thread: threading.Thread

    def __init__(self, section: RemoteSection, model: str, role: str) -> None:
        self.section = section
        self.model = section.name or model
        self.url = section.url.rstrip("/").removesuffix("/v1")
        self.role = role
        self.name = f"{role} ({self.model} at {self.url})"

    def __enter__(self) -> Server:
        self._client = httpx.AsyncClient(
            base_url=self.url,
            timeout=self.section.timeout,
            limits=httpx.Limits(),  # none: `_places` sees to that
            headers=self._headers(),
        )
        self._places = asyncio.Semaphore(self.section.concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        """Ends what is under way; nobody waits for it any more."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    def _headers(self) -> dict[str, str]:
        variable = self.section.api_key_env
        if variable is None:
            return {}
        if not (key := os.environ.get(variable)):
            raise BadInput(
                f"{self.role}: server.api_key_env names {variable}, which is not set in the environment"
            )
        return {"Authorization": f"Bearer {key}"}

    def _without_key(self, text: str) -> str:
        """Some servers repeat in a refusal the key that they were sent."""
        variable = self.section.api_key_env
        key = os.environ.get(variable) if variable is not None else None
        return text.replace(key, MASK) if key else text

    def submit(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Future[Tensor]:
        """What `logprobs` gives, when it is there; so many at a time as the recipe allows."""
        return self._start(self._logprobs(prompt_ids, response_ids))

    def logprobs(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Tensor:
        """Log-probs [R] of a response after a prompt, float32 on the CPU. Raises RunFailed when retries are used up."""
        return self.submit(prompt_ids, response_ids).result()

    def _start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _logprobs(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> Tensor:
        found = [token.logprob for token in await self._tokens(prompt_ids, response_ids)]
        return torch.tensor([-torch.inf if value <= MINUS_INFINITY else value for value in found])

    def check(self, own: Description) -> Description:
        """Tries the server before any work: its model is there, has the same vocabulary, and answers steadily.

        `own` is what the model's files say; it comes back with the server's room for tokens. Raises BadInput.
        """
        try:
            with self:
                room = self._room()
                self._check_vocabulary(own, room)
                self._check_steadiness(own, room)
        except RunFailed as error:
            raise BadInput(str(error)) from error
        return replace(own, name=self.name, context_length=min(own.context_length, room))

    def _room(self) -> int:
        """The most tokens that can be scored; a generated one must fit as well."""
        models = {model.id: model for model in self._start(self._ask(_Models, "/v1/models")).result().data}
        if self.model not in models:
            raise BadInput(
                f"{self.role}: the server at {self.url} has no model {self.model!r}, but "
                f"{', '.join(map(repr, sorted(models)))}; set server.name to the one that is meant"
            )
        return (models[self.model].max_model_len or 2**31) - 1

    def _check_vocabulary(self, own: Description, room: int) -> None:
        """The same tokens under the same ids, and no more logits than the model has."""
        vocabulary = own.tokenizer.get_vocab()
        last = max(vocabulary.values())
        step = max(1, last // min(SPREAD, room - 2))
        ids = [*range(0, last, step)[: room - 1], last]
        try:
            tokens = self._start(self._tokens(ids[:1], ids[1:])).result()
        except Refused as error:
            raise BadInput(f"{error}; ids up to {last} are in the vocabulary of the model folder") from error
        for index, token in zip(ids[1:], tokens, strict=True):
            mine, theirs = str(own.tokenizer.decode([index])), token.decoded_token
            if theirs is not None and "\ufffd" not in mine + theirs and mine.strip() != theirs.strip():
                raise self._other_vocabulary(f"id {index} is {theirs!r}, and {mine!r} in the model folder")
        try:
            self.logprobs(ids[:1], [own.logits])
        except Refused:
            pass
        else:
            raise self._other_vocabulary(f"it knows id {own.logits}, and the model has {own.logits} logits")
        self._check_tokenizer(own)

    def _check_tokenizer(self, own: Description) -> None:
        """Text becomes the same ids; where the server offers to show it."""
        body = {"model": self.model, "prompt": TEXT, "add_special_tokens": False}
        try:
            theirs = self._start(self._ask(_Tokens, "/tokenize", body)).result().tokens
        except Refused:
            return
        mine = own.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
        if mine != theirs:
            raise self._other_vocabulary(f"a text becomes {theirs[:8]} …, with the model folder {mine[:8]} …")

    def _other_vocabulary(self, how: str) -> BadInput:
        return BadInput(
            f"{self.name}: the server has another vocabulary: {how}; serve the model that the recipe names"
        )

    def _check_steadiness(self, own: Description, room: int) -> None:
        """One sequence again and again, alone and in company."""
        ids = own.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:room]
        alone = [self.logprobs(ids[:1], ids[1:]) for _ in range(REPEATS)]
        company = [self.submit(ids[:1], ids[1 : 3 + n % len(ids)]) for n in range(2 * REPEATS)]
        beside = [self.submit(ids[:1], ids[1:]) for _ in range(REPEATS)]
        for future in company:
            future.result()
        rows_BR = torch.stack([*alone, *(future.result() for future in beside)])
        moved = float((rows_BR.amax(0) - rows_BR.amin(0)).max())
        if not moved <= self.section.tolerance:
            raise BadInput(
                f"{self.name}: the log-prob of one token moved by {moved:.3g} nats when it was asked for "
                f"{2 * REPEATS} times, more than server.tolerance ({self.section.tolerance:g}); serve in a higher "
                "precision or a batch-invariant mode, or allow for it"
            )

    async def _tokens(self, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> list[_Token]:
        """What the server says about each response token."""
        ids = [*prompt_ids, *response_ids]
        body = {"model": self.model, "prompt": ids, "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0}
        answer = await self._ask(_Completion, "/v1/completions", body)
        found = answer.choices[0].prompt_logprobs
        if found is None:
            raise RunFailed(f"{self.name}: the answer has no prompt_logprobs; is it a vLLM server?")
        if len(found) != len(ids):
            raise RunFailed(f"{self.name}: {len(found)} tokens came back for {len(ids)}")
        tokens = [at.get(index) if at is not None else None for at, index in zip(found, ids, strict=True)]
        scored = [token for token in tokens[len(prompt_ids) :] if token is not None]
        if len(scored) != len(response_ids):
            raise RunFailed(f"{self.name}: the answer is about other tokens than those that were sent")
        return scored

    async def _ask(self, form: type[Answer], path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """The answer to one request, after retries where that may help. Raises RunFailed."""
        attempts, said = self.section.retries + 1, ""
        async with self._places:
            for attempt in range(attempts):
                if attempt:
                    pause = min(BACKOFF * 2 ** (attempt - 1), LONGEST_PAUSE)
                    await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                try:
                    response = await self._client.request("GET" if body is None else "POST", path, json=body)
                except httpx.TransportError as error:
                    said = f"{type(error).__name__} {error}"
                    continue
                said = f"status {response.status_code}: {' '.join(self._without_key(response.text).split())[:300]}"
                if response.status_code != 429 and response.status_code < 500:
                    return self._read(form, path, response, said)
        raise RunFailed(f"{self.name}: no answer to {path} in {attempts} attempts, at last: {said}")

    def _read(self, form: type[Answer], path: str, response: httpx.Response, said: str) -> Answer:
        if not response.is_success:
            raise Refused(f"{self.name}: refused, {said}")
        try:
            return form.model_validate_json(response.content)
        except ValidationError as error:
            raise RunFailed(f"{self.name}: not an answer to {path} as vLLM gives it, {said}") from error
