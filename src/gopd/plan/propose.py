"""The cluster section for so many devices of a kind: the quickest of those that fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import yaml

from gopd.plan.devices import Device
from gopd.plan.fit import Fit, fit
from gopd.plan.layout import Layout, possible_parallel
from gopd.plan.timing import Timing, step_timing
from gopd.plan.workload import Workload

SHARES = tuple(n / 20 for n in range(18, 2, -1))
"""Shares of memory that engines are tried with."""
PARTS = 16
"""Large clusters are cut among the roles in so many parts."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A layout, what it takes and how long a step would be; `work` may have a smaller budget of micro-batches."""

    work: Workload
    layout: Layout
    fit: Fit
    timing: Timing


def assess(work: Workload, layout: Layout, device: Device) -> Choice:
    """One layout, whether it fits or not."""
    found = fit(work, layout, device)
    return Choice(work, layout, found, step_timing(work, layout, device, found.slots))


def propose(work: Workload, like: Layout, device: Device, count: int) -> Choice | None:
    """The quickest layout that fits `count` devices, shared or separate; `like` gives what is not searched. None: none.

    Engines are vLLM's. Of those within 1% the first is taken: without offload, and the least tensor parallelism.
    Where nothing fits, micro-batches are halved as long as they hold the longest row: the loss stays the same.
    """
    while True:
        best: Choice | None = None
        for layout in _layouts(work, like, device, count):
            shares = SHARES if work.sampled else SHARES[:1]
            fitting = (replace(layout, memory_share=share) for share in shares)
            found = next((tried for tried in fitting if fit(work, tried, device).fits), None)
            if found is not None:
                choice = assess(work, found, device)
                if best is None or choice.timing.seconds < 0.99 * best.timing.seconds:
                    best = choice
        if best is not None or work.budget <= work.longest:
            return best
        work = replace(work, budget=max(work.longest, work.budget // 2))


def _layouts(work: Workload, like: Layout, device: Device, count: int) -> Iterator[Layout]:
    base = replace(like, engine="vllm", slots=max(256, like.slots), alone=False, offload=False, sleep=False)
    if not work.sampled:
        yield from (replace(base, ranks=count, offload=offload) for offload in (False, True))
        return
    seats, parallels = len(work.seats), possible_parallel(work.student.heads, device.per_node)
    for offload in (False, True):
        for parallel in (p for p in parallels if count % p == 0):
            yield replace(
                base,
                ranks=count,
                replicas=count // parallel,
                tensor_parallel=parallel,
                scorers=max(1, count // seats) if seats else 1,
                colocate=True,
                offload=offload,
                sleep=True,
            )
        step = max(1, count // PARTS)
        for ranks in range(step, count, step):
            for scorers in _scorer_counts(seats, count - ranks, step):
                left = count - ranks - seats * scorers
                for parallel in (p for p in parallels if p <= left):
                    yield replace(
                        base,
                        ranks=ranks,
                        replicas=left // parallel,
                        tensor_parallel=parallel,
                        scorers=scorers,
                        colocate=False,
                        offload=offload,
                    )


def _scorer_counts(seats: int, left: int, step: int) -> list[int]:
    """Scorers of each teacher that leave room for an engine."""
    if not seats:
        return [1]
    return [n for n in range(1, left // seats + 1) if seats * n < left and (n == 1 or n * seats % step == 0)]


def section_yaml(choice: Choice, budget: int) -> str:
    """The sections of a recipe that make a choice; `budget` is the recipe's own, said anew where it was changed."""
    layout, work = choice.layout, choice.work
    cluster: dict[str, object] = {"learner_ranks": layout.ranks}
    if work.sampled:
        cluster |= {"sampler_replicas": layout.replicas, "colocate": layout.colocate}
    if work.seats:
        cluster["scorers_per_teacher"] = layout.scorers
    if layout.offload:
        cluster["offload"] = True
    tree: dict[str, object] = {"cluster": cluster}
    if work.sampled:
        vllm = {
            "tensor_parallel": layout.tensor_parallel,
            "memory_share": layout.memory_share,
            "max_sequences": layout.slots,
        }
        tree["sampler"] = {"engine": "vllm", "vllm": vllm | ({"sleep": True} if layout.sleep else {})}
    if work.budget != budget:
        tree["train"] = {"tokens_per_micro_batch": work.budget}
    return yaml.safe_dump(tree, sort_keys=False)
