"""The embedded sampler: decodes with the learner's own weights, no copy, no second engine.

Rows decode side by side in slots over one key-value cache; a finished row's slot is refilled at once, and when
no row is waiting the remaining rows close ranks, so no finished row is ever computed. A prompt with several samples
is computed once. Every row draws from its own random stream, so a response depends on (seed, step, prompt, sample)
and not on its batch-mates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gopd.attention import DecodeLayout, KeyValueCache, PackedLayout
from gopd.errors import RunFailed
from gopd.model import LanguageModel
from gopd.prepack import Head, prepacked
from gopd.sampler import Finished, Progress, Request, Response, nothing
from gopd.sections import SamplingSection

PREFILL_TOKENS = 8192
BLOCK = 128


class TorchSampler:
    """Samples from a `LanguageModel` with at most `slots` rows in flight."""

    def __init__(self, model: LanguageModel, slots: int) -> None:
        self.model = model
        self.exact = not model.narrow  # in bfloat16, decoding and the packed forward round differently
        self.slots = slots

    def sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingSection,
        progress: Progress,
        finished: Finished = nothing,
    ) -> list[Response]:
        """Answers every request, in order."""
        slots = min(self.slots, len(requests))
        with torch.inference_mode(), prepacked(self.model, slots) as head:
            flight = _Flight(self.model, head, slots, requests, sampling)
            while flight.busy():
                flight.admit()
                flight.decode()
                for number in flight.take_fresh():
                    finished(number, flight.done[number])
                progress(flight.finished, len(requests), flight.tokens)
        return flight.responses()

    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Copies the learner's weights, for a model that is not the learner's very own; not while it samples."""
        own = dict(self.model.module.named_parameters())
        with torch.no_grad():
            for name, weight in weights:
                own[name].copy_(weight)


class _Flight:
    """The rows of one `sample` call: those waiting, those in slots, those done."""

    def __init__(
        self,
        model: LanguageModel,
        head: Head,
        slots: int,
        requests: Sequence[Request],
        sampling: SamplingSection,
    ) -> None:
        self.model, self.head, self.requests, self.sampling = model, head, requests, sampling
        device, limit = model.device, max(r.max_response_tokens for r in requests)
        self.slots = slots
        numbers: dict[tuple[int, ...], int] = {}
        self.prompt_of = [numbers.setdefault(tuple(r.prompt_ids), len(numbers)) for r in requests]
        """Each request's prompt, numbered: equal for samples of one prompt."""
        self.cache = KeyValueCache(slots, max(len(r.prompt_ids) for r in requests) + 64)
        self.next = 0
        self.active: list[int] = []
        """Request number of each slot in use; slots 0 … len−1 are always the ones in use."""
        self.done: dict[int, Response] = {}
        self.fresh: list[int] = []
        """Done since they were last asked for."""
        self.tokens = 0
        self.eos_E = torch.tensor(model.eos_ids, device=device)
        self.ids_BL = torch.zeros((slots, limit), dtype=torch.long, device=device)
        self.logprobs_BL = torch.zeros((slots, limit), device=device)
        self.uniforms_BL = torch.zeros((slots, limit), dtype=torch.float64, device=device)
        self.drawn_B = torch.zeros(slots, dtype=torch.long, device=device)
        self.limit_B = torch.zeros(slots, dtype=torch.long, device=device)
        self.prompt_B = torch.zeros(slots, dtype=torch.long, device=device)
        hidden_dtype = torch.bfloat16 if model.narrow else model.head_VD.dtype
        self.prompt_hidden_BD = torch.zeros(
            (slots, model.head_VD.shape[1]), dtype=hidden_dtype, device=device
        )
        """Final hidden state of each prompt's last token, which its first response token is drawn from."""

    def busy(self) -> bool:
        return self.next < len(self.requests) or bool(self.active)

    @property
    def finished(self) -> int:
        return len(self.done)

    def take_fresh(self) -> list[int]:
        """The requests done since the last time."""
        fresh, self.fresh = self.fresh, []
        return fresh

    def responses(self) -> list[Response]:
        """In the order of the requests; to be called outside inference mode, so that losses can use the tensors."""
        ordered = (self.done[i] for i in range(len(self.requests)))
        return [replace(response, logprobs_R=response.logprobs_R.clone()) for response in ordered]

    def admit(self) -> None:
        """Brings waiting requests into free slots and draws their first tokens.

        Prompts are prefilled packed; one that a row in flight has too is copied from there.
        """
        while self.next < len(self.requests) and len(self.active) < self.slots:
            first, budget = len(self.active), PREFILL_TOKENS
            fresh: list[int] = []
            copies: list[tuple[int, int]] = []
            while self.next < len(self.requests) and len(self.active) < self.slots:
                slot, request = len(self.active), self.requests[self.next]
                source = self._sibling(self.next)
                if source is not None:
                    copies.append((source, slot))
                else:
                    budget -= len(request.prompt_ids)
                    if budget < 0 and fresh:
                        break
                    fresh.append(slot)
                self._occupy(slot, request)
                self.active.append(self.next)
                self.next += 1
            if fresh:
                self._prefill(fresh)
            for source, slot in copies:
                self.cache.copy(source, slot, len(self.requests[self.active[slot]].prompt_ids))
                self.prompt_hidden_BD[slot] = self.prompt_hidden_BD[source]
            rows = slice(first, len(self.active))
            self._draw(self.prompt_hidden_BD[rows], rows)
            self._retire()

    def _sibling(self, request: int) -> int | None:
        """A slot whose row has the same prompt."""
        same = (slot for slot, r in enumerate(self.active) if self.prompt_of[r] == self.prompt_of[request])
        return next(same, None)

    def _prefill(self, slots: list[int]) -> None:
        prompts = [self.requests[self.active[s]].prompt_ids for s in slots]
        lengths = [len(p) for p in prompts]
        assert all(lengths), "a row needs a prompt"
        device = self.model.device
        ids_T = torch.tensor([t for p in prompts for t in p], device=device)
        positions_T = torch.cat([torch.arange(n) for n in lengths]).to(device)
        layout = PackedLayout(lengths, cache=self.cache, slots=tuple(slots))
        hidden_TD = self.model.forward(ids_T[None], positions_T[None], layout)[0]
        last_B = torch.tensor(lengths, device=device).cumsum(0) - 1
        self.prompt_hidden_BD[torch.tensor(slots, device=device)] = hidden_TD[last_B]

    def decode(self) -> None:
        """One more token for every row in flight."""
        if not self.active:
            return
        rows = slice(0, len(self.active))
        last_B1 = self.ids_BL[rows].gather(1, self.drawn_B[rows, None] - 1)
        positions_B = self.prompt_B[rows] + self.drawn_B[rows] - 1
        layout = DecodeLayout.at(self.cache, positions_B)
        self._draw(self.model.forward(last_B1, positions_B[:, None], layout)[:, 0], rows)
        self._retire()

    def _occupy(self, slot: int, request: Request) -> None:
        self.uniforms_BL[slot, : request.max_response_tokens] = row_uniforms(
            request.stream, request.max_response_tokens
        )
        self.drawn_B[slot] = 0
        self.limit_B[slot] = request.max_response_tokens
        self.prompt_B[slot] = len(request.prompt_ids)

    def _draw(self, hidden_BD: Tensor, rows: slice) -> None:
        logits_BV = self.head(hidden_BD)
        if self.sampling.temperature != 1:
            logits_BV.div_(self.sampling.temperature)
        column_B1 = self.drawn_B[rows, None]
        uniforms_B = self.uniforms_BL[rows].gather(1, column_B1).squeeze(1)
        ids_B, logprobs_B = draw(logits_BV, uniforms_B, self.sampling.top_p, self.sampling.top_k)
        self.ids_BL[rows].scatter_(1, column_B1, ids_B[:, None])
        self.logprobs_BL[rows].scatter_(1, column_B1, logprobs_B[:, None])
        self.drawn_B[rows] += 1
        self.tokens += len(ids_B)

    def _retire(self) -> None:
        """Takes finished rows out; the last row in flight moves into each gap."""
        count = len(self.active)
        drawn_B = self.drawn_B[:count]
        last_B = self.ids_BL[:count].gather(1, drawn_B[:, None] - 1).squeeze(1)
        ended_B = torch.isin(last_B, self.eos_E)
        over_B = ended_B | (drawn_B >= self.limit_B[:count])
        for slot in sorted(over_B.nonzero().flatten().tolist(), reverse=True):
            length = int(self.drawn_B[slot])
            ids, logprobs_R = (
                self.ids_BL[slot, :length].tolist(),
                self.logprobs_BL[slot, :length].cpu().clone(),
            )
            self.fresh.append(self.active[slot])
            self.done[self.active[slot]] = Response(ids, logprobs_R, bool(ended_B[slot]))
            last = len(self.active) - 1
            if slot != last:
                self.cache.copy(last, slot, int(self.prompt_B[last] + self.drawn_B[last]) - 1)
                for store in (self.ids_BL, self.logprobs_BL, self.uniforms_BL, self.prompt_hidden_BD):
                    store[slot] = store[last]
                for counter in (self.drawn_B, self.limit_B, self.prompt_B):
                    counter[slot] = counter[last]
                self.active[slot] = self.active[last]
            self.active.pop()


def row_uniforms(stream: tuple[int, ...], count: int) -> Tensor:
    """`count` uniform numbers in [0, 1) of one row's own stream (Philox keyed by a hash of `stream`); float64."""
    digest = hashlib.sha256(repr(stream).encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return torch.from_numpy(generator.random(count))


def draw(logits_BV: Tensor, uniforms_B: Tensor, top_p: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Draws one id per row by inverse CDF in two levels: first a block of tokens, then a token in it.

    `logits_BV` are float32, divided by the temperature. Returns ids [B] and their log-probs [B] under the *whole*
    distribution: top-p/top-k change what is drawn, not how it is scored, as the trainer scores it so too. Raises
    RunFailed when a row's logits are not finite.
    """
    whole = top_p == 1 and top_k == 0
    highest_B1 = logits_BV.amax(-1, keepdim=True)
    weights_BV = ((logits_BV if whole else restrict(logits_BV, top_p, top_k)) - highest_B1).exp_()
    rows, vocabulary = weights_BV.shape
    weights_BNK = F.pad(weights_BV, (0, -vocabulary % BLOCK)).view(rows, -1, BLOCK)
    blocks_BN = weights_BNK.sum(-1).double().cumsum(-1)
    norm_B = blocks_BN[:, -1].log() + highest_B1[:, 0] if whole else logits_BV.logsumexp(-1)
    if not norm_B.isfinite().all():
        raise RunFailed("sampling: the model's logits are not finite; its weights have diverged")
    point_B1 = (uniforms_B[:, None] * blocks_BN[:, -1:]).clamp_max(_below(blocks_BN[:, -1:]))
    block_B1 = torch.searchsorted(blocks_BN, point_B1, right=True)
    before_B1 = F.pad(blocks_BN, (1, 0)).gather(1, block_B1)
    inside_BK = weights_BNK[torch.arange(rows, device=block_B1.device), block_B1[:, 0]].double().cumsum(-1)
    # Where in the block, as a share of it: its sum was rounded to float32, the sums inside are not.
    share_B1 = (point_B1 - before_B1) / (blocks_BN.gather(1, block_B1) - before_B1)
    rest_B1 = (share_B1 * inside_BK[:, -1:]).clamp_max(_below(inside_BK[:, -1:]))
    ids_B = (block_B1 * BLOCK + torch.searchsorted(inside_BK, rest_B1, right=True)).squeeze(1)
    return ids_B, logits_BV.gather(1, ids_B[:, None]).squeeze(1) - norm_B.float()


def restrict(logits_BV: Tensor, top_p: float, top_k: int) -> Tensor:
    """Logits with everything outside the top-k, then outside the top-p nucleus, at −inf.

    The nucleus is the smallest set of likeliest tokens whose probability, among the top-k, reaches `top_p`.
    """
    kept = min(top_k, logits_BV.shape[-1]) if top_k else logits_BV.shape[-1]
    values_BK, index_BK = logits_BV.topk(kept, dim=-1)
    if top_p < 1:
        probs_BK = values_BK.softmax(-1)
        values_BK = values_BK.masked_fill(probs_BK.cumsum(-1) - probs_BK >= top_p, -torch.inf)
    return torch.full_like(logits_BV, -torch.inf).scatter_(-1, index_BK, values_BK)


def _below(values: Tensor) -> Tensor:
    return torch.nextafter(values, torch.zeros_like(values))
