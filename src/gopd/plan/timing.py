"""Seconds of each phase of a step, from operations, bytes and the rates that devices are assumed to reach."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from gopd.cost import Limits, ModelCost, Work
from gopd.packing import micro_batches
from gopd.plan.devices import Device
from gopd.plan.layout import Layout
from gopd.plan.lengths import balanced, dealt
from gopd.plan.links import gather_seconds, spread_seconds, sum_seconds
from gopd.plan.sizes import ModelSizes
from gopd.plan.workload import Seat, Workload


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of a step on the device that takes longest. What binds: `products`, `memory` or `links`."""

    name: str
    seconds: float
    flops: float
    """Of all devices together, without recomputation."""
    binds: str
    note: str = ""
    links: float = 0.0
    """Seconds of traffic between devices, whether hidden behind products or not."""


@dataclass(frozen=True, slots=True)
class Timing:
    """A whole step. Without staleness phases follow each other; with it those on separate devices overlap."""

    phases: tuple[Phase, ...]
    seconds: float

    @property
    def binds(self) -> Phase:
        """The longest phase."""
        return max(self.phases, key=lambda phase: phase.seconds)


def step_timing(work: Workload, layout: Layout, device: Device, slots: int) -> Timing:
    """A step's phases and its time; `slots` rows decode side by side in an engine.

    Batch k is sampled with weights that lack at most `staleness` batches: so many further steps can be under way while
    one is finished, and none can be quicker than the longest phase.
    """
    phases = []
    if work.sampled:
        phases.append(sampling(work, layout, device, slots))
    if work.seats:
        phases.append(scoring(work, layout, device))
    phases.append(update(work, layout, device))
    if work.sampled and not layout.alone:
        phases.append(weight_transfer(work, layout, device))
    total = sum(phase.seconds for phase in phases)
    if layout.together or work.staleness == 0:
        return Timing(tuple(phases), total)
    longest = max(phase.seconds for phase in phases)
    return Timing(tuple(phases), max(longest, total / (1 + work.staleness)))


def sampling(work: Workload, layout: Layout, device: Device, slots: int) -> Phase:
    """Every engine decodes the rows dealt to it; the slowest one ends the phase."""
    groups = dealt(range(len(work.responses) // work.samples), layout.replicas)
    prompt, samples, cost = work.prompt, work.samples, work.student.cost
    shared = _shared(cost, layout.tensor_parallel)
    links = _parallel_link(work.student, layout.tensor_parallel, device)
    runs = [
        decoding(
            shared,
            prompt,
            tuple(work.responses[p * samples + s] for p in group for s in range(samples)),
            samples,
            slots,
            device.limits,
            links,
        )
        for group in groups
        if group
    ]
    slowest = max(runs, key=lambda run: run.seconds)
    rows = len(work.responses)
    flops = cost.forward([prompt] * rows, work.responses, samples=samples).flops
    note = f"{slowest.alone:.0%} of the time at most {FEW} rows decode in the slowest engine"
    return Phase("sampling", slowest.seconds, flops, slowest.binds, note)


FEW = 8
"""Rows at which an engine reads its weights for hardly anybody."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """One engine's run. `alone`: share of the time in which at most FEW rows decode."""

    seconds: float
    work: Work
    binds: str
    alone: float


@lru_cache(maxsize=512)
def decoding(
    cost: ModelCost,
    prompt: int,
    responses: tuple[int, ...],
    samples: int,
    slots: int,
    limits: Limits,
    links: tuple[float, float] = (0.0, 0.0),
) -> Decoding:
    """Plays through one engine's decoding: rows enter in order as slots get free, and every step is as long as its
    products, its reading of weights and caches, or its links (seconds per step, and per row and step).

    The first token of a response comes from the prompt's own pass. Between two rows' ends the number of rows is
    constant and contexts grow evenly, so those steps are summed in closed form.
    """
    weights, first = cost.body + cost.head, cost.forward([prompt], [1]).flops
    ends: list[int] = []
    started: dict[int, list[int]] = {}
    step = next_row = context = 0
    flops = traffic = few = 0.0
    spent = {"products": 0.0, "memory": 0.0, "links": 0.0}
    while next_row < len(responses) or ends:
        while next_row < len(responses) and len(ends) < slots:
            prefill = 2.0 * cost.head if next_row % samples else first
            flops += prefill
            spent["products"] += prefill / limits.flops_per_second
            if responses[next_row] > 1:
                end = step + responses[next_row] - 1
                heapq.heappush(ends, end)
                started.setdefault(end, []).append(step)
                context += prompt + 1
            next_row += 1
        if not ends:
            break
        rows, steps = len(ends), ends[0] - step
        # Contexts of all rows together at the middle of these steps; a row's own is prompt + tokens so far.
        middle = context + rows * (steps - 1) / 2
        step_flops = 2.0 * rows * weights + 4.0 * cost.attention * middle
        step_bytes = cost.element * (weights + cost.cache * middle)
        flops, traffic = flops + steps * step_flops, traffic + steps * step_bytes
        products, memory = step_flops / limits.flops_per_second, step_bytes / limits.bytes_per_second
        network = links[0] + rows * links[1]
        longer = max(products, memory)
        binds = "links" if network > longer else "memory" if memory > products else "products"
        spent[binds] += steps * (longer + network)
        few += steps * (longer + network) if rows <= FEW else 0.0
        step, context = ends[0], context + rows * steps
        while ends and ends[0] == step:
            end = heapq.heappop(ends)
            context -= prompt + 1 + step - started[end].pop()
    seconds = sum(spent.values())
    return Decoding(seconds, Work(flops, traffic), max(spent, key=lambda part: spent[part]), few / seconds)


def _shared(cost: ModelCost, parts: int) -> ModelCost:
    """What one of so many devices has of a model."""
    return ModelCost(
        cost.body // parts, cost.head // parts, cost.attention // parts, cost.cache // parts, cost.element
    )


def _parallel_link(model: ModelSizes, parts: int, device: Device) -> tuple[float, float]:
    """Tensor parallelism sums hidden states twice in every block: seconds per step, and per row and step."""
    calls, row = 2 * model.layers, float(model.cost.element * model.hidden)
    latency = calls * sum_seconds(device, parts, 0.0)
    return latency, calls * sum_seconds(device, parts, row) - latency


def scoring(work: Workload, layout: Layout, device: Device) -> Phase:
    """Each teacher's scorers share its rows by length; scorers on one device take turns."""
    turns = layout.seats_per_device(work)
    slowest, flops, sent = 0.0, 0.0, 0.0
    first = 0
    for seat in work.seats:
        responses = work.responses[first : first + round(seat.share * len(work.responses))]
        first += len(responses)
        if not responses:
            continue
        flops += _scoring_work(work, seat, responses).flops
        shares = balanced(responses, layout.scorers)
        mine = max(
            (_scoring_work(work, seat, [responses[i] for i in share]) for share in shares if share),
            key=lambda w: w.flops,
        )
        slowest = max(slowest, mine.seconds(device.limits))
        if work.hidden:
            numbers = sum(m.hidden for m in seat.models) * max(
                sum(responses[i] for i in share) for share in shares
            )
            sent = max(sent, seat.teacher.cost.element * numbers / device.remote_link)
    seconds = turns * slowest
    if work.hidden and not layout.alone:
        seconds, links = seconds + turns * sent, sent > slowest
        return Phase("scoring", seconds, flops, "links" if links else "products", "sends hidden states")
    return Phase("scoring", seconds, flops, "products")


def _scoring_work(work: Workload, seat: Seat, responses: Sequence[int]) -> Work:
    prompts = [work.prompt] * len(responses)
    total = Work(0)
    for model in seat.models:
        total += model.cost.forward(prompts, responses, samples=1)
        if work.hidden:  # the learner applies the heads
            total += Work(-2.0 * sum(responses) * model.cost.head)
    return total


def update(work: Workload, layout: Layout, device: Device) -> Phase:
    """Forward, backward and optimizer on the rank that has most; ranks wait for each other at every micro-batch.

    Rows are shared out by length. Weights of a block are gathered for its forward and again for its backward pass, and
    gradients summed, while the neighbouring block computes: the longer of the two counts. Gradients go in float32.
    """
    model, rows = work.student, len(work.responses) // work.updates
    responses = work.responses[:rows]
    lengths = [work.prompt + r for r in responses]
    shares = [share for share in balanced(lengths, layout.ranks) if share]
    busiest = max(shares, key=lambda share: sum(lengths[i] for i in share))
    mine = [responses[i] for i in busiest]
    prompts = [work.prompt] * len(mine)
    needed = model.cost.update(prompts, mine, samples=1).flops
    again = _recomputed(work, mine) if work.checkpointing else 0.0
    heads = 0.0
    if work.hidden:
        heads = sum(seat.share * 2.0 * sum(mine) * m.cost.head for seat in work.seats for m in seat.models)
    products = (needed + again + heads) / device.limits.flops_per_second
    batches = _micro_batches(work, mine)
    links = batches * _rank_links(model, layout, device) + _between_groups(model, layout, device)
    whole = model.cost.update([work.prompt] * len(work.responses), work.responses, samples=1).flops
    optimizer = _optimizer_seconds(model, layout, device)
    repeat = work.updates * work.passes
    seconds = repeat * (max(products, links) + optimizer)
    binds = "links" if links > products else "products" if products > optimizer else "memory"
    note = f"{batches} micro-batches a rank" + (", recomputing blocks" if work.checkpointing else "")
    return Phase("update", seconds, work.passes * whole, binds, note, repeat * links)


def _recomputed(work: Workload, responses: Sequence[int]) -> float:
    """Gradient checkpointing goes through the body once more."""
    cost = work.student.cost
    forward = cost.forward([work.prompt] * len(responses), responses).flops
    return forward - 2.0 * sum(responses) * cost.head


def _micro_batches(work: Workload, responses: Sequence[int]) -> int:
    """Counted by the packing that the learner uses."""
    prompts = [[i] * work.prompt for i in range(len(responses))]
    return len(micro_batches(prompts, [range(r) for r in responses], work.budget))


def _rank_links(model: ModelSizes, layout: Layout, device: Device) -> float:
    """Of one micro-batch: blocks gathered twice, what belongs to no block once, all gradients summed and scattered;
    offloaded weights and gradients also pass the host's link.
    """
    group = layout.shard_group or layout.ranks
    narrow = model.cost.element
    blocks = float(model.layers * model.block)
    seconds = 2 * gather_seconds(device, group, narrow * blocks, calls=model.layers)
    seconds += gather_seconds(device, group, narrow * float(model.root))
    seconds += gather_seconds(device, group, 4.0 * model.parameters, calls=model.layers + 1)
    if layout.offload:
        seconds += 4 * (2 * blocks + model.root + model.parameters) / group / device.host_link
    return seconds


def _between_groups(model: ModelSizes, layout: Layout, device: Device) -> float:
    """Where several groups hold a copy of the weights each: their gradients summed once an optimizer step."""
    if layout.shard_group is None or layout.shard_group >= layout.ranks:
        return 0.0
    size = 4.0 * model.parameters / layout.shard_group
    return sum_seconds(device, layout.ranks // layout.shard_group, size, calls=model.layers + 1, apart=True)


def _optimizer_seconds(model: ModelSizes, layout: Layout, device: Device) -> float:
    """AdamW reads weight, gradient and two moments and writes three of them; clipping reads the gradient first."""
    shard = model.parameters / (layout.shard_group or layout.ranks)
    rate = device.host_link if layout.offload else device.limits.bytes_per_second
    return 8 * 4 * shard / rate


def weight_transfer(work: Workload, layout: Layout, device: Device) -> Phase:
    """New weights to every engine's devices, in the narrow dtype."""
    size = float(work.student.cost.element * work.student.parameters)
    receivers = layout.replicas * layout.tensor_parallel
    return Phase("weights to samplers", spread_seconds(device, receivers, size), 0.0, "links")
