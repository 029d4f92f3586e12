"""Padding-free packing: rows end to end in one sequence, shared prompts once, and micro-batches by token budget."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of prompt + response laid end to end. The last response token of a row is never fed: nothing follows it.

    The sequence consists of segments: a whole row; or a prompt that neighbouring rows share, and then each of their
    responses alone. `lengths` are the segments' tokens, `after` the number of the segment that holds the prompt before
    it, or None. `predicts_T` are the places in the packed sequence whose hidden states predict the response tokens
    `targets_T`, and `row_T` numbers the row of each of those.
    """

    input_ids_T: Tensor
    position_ids_T: Tensor
    lengths: list[int]
    after: list[int | None]
    predicts_T: Tensor
    targets_T: Tensor
    row_T: Tensor
    response_lengths: list[int]

    def split(self, values_T: Tensor) -> list[Tensor]:
        """Per-response-token values, cut back into rows."""
        return list(values_T.split(self.response_lengths))


class _Segments:
    """Segments while they are laid out."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[Tensor] = []
        self.lengths: list[int] = []
        self.after: list[int | None] = []

    def add(self, tokens: Sequence[int], after: int | None = None) -> int:
        """Appends a segment, unless it is empty; returns where it starts in the sequence."""
        start = len(self.tokens)
        if tokens:
            before = 0 if after is None else self.lengths[after]
            self.tokens += tokens
            self.positions.append(torch.arange(before, before + len(tokens)))
            self.lengths.append(len(tokens))
            self.after.append(after)
        return start


def pack(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], device: torch.device
) -> Packed:
    """Packs rows; every prompt and every response must have at least one token."""
    segments, predicts = _Segments(), list[Tensor]()
    for rows in shared_prompts(prompts):
        prompt = list(prompts[rows[0]])
        assert prompt and all(responses[row] for row in rows), "a row needs a prompt and a response"
        if len(rows) == 1:
            start = segments.add([*prompt, *responses[rows[0]][:-1]]) + len(prompt) - 1
            predicts.append(torch.arange(start, start + len(responses[rows[0]])))
            continue
        last = segments.add(prompt) + len(prompt) - 1
        shared = len(segments.lengths) - 1
        for row in rows:
            start = segments.add(responses[row][:-1], after=shared)
            own = torch.arange(start, start + len(responses[row]) - 1)
            predicts.append(torch.cat([torch.tensor([last]), own]))
    response_lengths = [len(r) for r in responses]
    return Packed(
        input_ids_T=torch.tensor(segments.tokens, device=device),
        position_ids_T=torch.cat(segments.positions).to(device),
        lengths=segments.lengths,
        after=segments.after,
        predicts_T=torch.cat(predicts).to(device),
        targets_T=torch.tensor([t for r in responses for t in r], device=device),
        row_T=torch.repeat_interleave(torch.tensor(response_lengths)).to(device),
        response_lengths=response_lengths,
    )


def shared_prompts(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Row numbers, neighbouring rows with equal prompts together."""
    rows: list[int] = []
    for row, prompt in enumerate(prompts):
        if rows and prompt != prompts[rows[-1]]:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def micro_batches(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], budget: int
) -> list[list[int]]:
    """Groups row numbers so that each group has at most `budget` tokens (a longer row stands alone).

    Rows that share a prompt stay together as far as the budget allows. First-fit over such units sorted longest
    first: few groups, nearly full, and the same for the same lengths.
    """
    units = [unit for rows in shared_prompts(prompts) for unit in _units(rows, prompts, responses, budget)]
    groups: list[list[int]] = []
    room: list[int] = []
    for tokens, rows in sorted(units, key=lambda unit: (-unit[0], unit[1][0])):
        place = next((g for g, free in enumerate(room) if free >= tokens), None)
        if place is None:
            place = len(groups)
            groups.append([])
            room.append(budget)
        groups[place] += rows
        room[place] -= tokens
    return [sorted(group) for group in groups]


def deal(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], budget: int, ranks: int
) -> list[list[list[int]]]:
    """Micro-batches for several ranks that compute side by side: rounds of one group of row numbers per rank.

    Every rank has a group in every round, as they wait for each other; groups of a round have about as many tokens,
    and where there are fewer rows than ranks some groups are empty. For one rank these are `micro_batches`.
    """
    if ranks == 1:
        return [[group] for group in micro_batches(prompts, responses, budget)]
    units = [unit for rows in shared_prompts(prompts) for unit in _units(rows, prompts, responses, budget)]
    most = max(tokens for tokens, _ in units)
    rounds = max(1, -(-sum(tokens for tokens, _ in units) // (budget * ranks)))
    while True:
        filled = _even(units, rounds * ranks)
        if filled[0][0] <= max(budget, most):
            break
        rounds += 1
    return [[sorted(rows) for _, rows in filled[i : i + ranks]] for i in range(0, len(filled), ranks)]


def _even(units: list[tuple[int, list[int]]], count: int) -> list[tuple[int, list[int]]]:
    """Units in so many groups of about as many tokens each, fullest first: longest units go to the emptiest group."""
    heap: list[tuple[int, int, list[int]]] = [(0, i, []) for i in range(count)]
    for tokens, rows in sorted(units, key=lambda unit: (-unit[0], unit[1][0])):
        filled, place, group = heapq.heappop(heap)
        heapq.heappush(heap, (filled + tokens, place, group + rows))
    return sorted(((filled, group) for filled, _, group in heap), key=lambda group: -group[0])


def _units(
    rows: list[int], prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], budget: int
) -> list[tuple[int, list[int]]]:
    """Rows of one prompt cut where the budget ends: (tokens, rows) each."""
    units: list[tuple[int, list[int]]] = []
    for row in rows:
        if units and units[-1][0] + len(responses[row]) <= budget:
            tokens, unit = units.pop()
            units.append((tokens + len(responses[row]), [*unit, row]))
        else:
            units.append((len(prompts[row]) + len(responses[row]), [row]))
    return units
