"""Padding-free packing: rows end to end in one sequence, and micro-batches by token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of prompt + response laid end to end. The last response token of a row is never fed: nothing follows it.

    `lengths` are the fed tokens of each row. `predicts_T` are the places in the packed sequence whose hidden
    states predict the response tokens `targets_T`, and `row_T` numbers the row of each of those.
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    lengths: list[int]
    predicts_T: Tensor
    targets_T: Tensor
    row_T: Tensor
    response_lengths: list[int]

    def split(self, values_T: Tensor) -> list[Tensor]:
        """Per-response-token values, cut back into rows."""
        return list(values_T.split(self.response_lengths))


def pack(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device
) -> Packed:
    """Packs rows; every prompt and every response must have at least one token."""
    tokens: list[int] = []
    predicts: list[Tensor] = []
    lengths = []
    for prompt, response in zip(prompts, responses, strict=True):
        assert prompt and response, "a row needs a prompt and a response"
        start = len(tokens) + len(prompt) - 1
        predicts.append(torch.arange(start, start + len(response)))
        tokens += [*prompt, *response[:-1]]
        lengths.append(len(prompt) + len(response) - 1)
    response_lengths = [len(r) for r in responses]
    return Packed(
        input_ids_T=torch.tensor(tokens, device=device),
        position_ids_T=torch.cat([torch.arange(n) for n in lengths]).to(device),
        lengths=lengths,
        predicts_T=torch.cat(predicts).to(device),
        targets_T=torch.tensor([t for r in responses for t in r], device=device),
        row_T=torch.repeat_interleave(torch.tensor(response_lengths)).to(device),
        response_lengths=response_lengths,
    )


def micro_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Groups row numbers so that each group has at most `budget` tokens (a longer row stands alone).

    First-fit over rows sorted longest first: few groups, nearly full, and the same for the same lengths.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = next((g for g, free in enumerate(room) if free >= lengths[row]), None)
        if place is None:
            place = len(groups)
            groups.append([])
            room.append(budget)
        groups[place].append(row)
        room[place] -= lengths[row]
    return [sorted(group) for group in groups]
