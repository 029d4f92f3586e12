"""How step time grows with the cluster: a recipe's step from 8 devices to thousands, as it is and with changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from gopd.plan.devices import Device
from gopd.plan.fit import fit
from gopd.plan.layout import Layout
from gopd.plan.timing import Timing, step_timing
from gopd.plan.workload import Workload

SIZES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
GROUP = 8
"""Devices of a node: of an engine with tensor parallelism, and of a shard group."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to run on many devices."""

    name: str
    grows: bool = False
    """The batch grows with the cluster, so that every device keeps the rows that it has on the smallest one."""
    parallel: int = 1
    """Devices of an engine."""
    groups: bool = False
    """Weights sharded within groups of GROUP ranks, each with a copy (HSDP), rather than over all ranks."""
    staleness: int = 0
    """Above 0 the roles have devices of their own and work at the same time."""


SETTINGS = (
    Setting("as it is"),
    Setting("engines over 8 devices", parallel=GROUP),
    Setting("larger batch", grows=True),
    Setting("larger batch, engines over 8", grows=True, parallel=GROUP),
    Setting("and asynchronous, shard groups", grows=True, parallel=GROUP, groups=True, staleness=2),
)


@dataclass(frozen=True, slots=True)
class Point:
    """One setting on so many devices. `per_device` is tokens/s."""

    setting: str
    devices: int
    rows: int
    timing: Timing
    per_device: float
    fits: bool


def simulate(
    make: Callable[[int], Workload], setting: Setting, device: Device, sizes: Sequence[int] = SIZES
) -> list[Point]:
    """One setting on clusters of growing size; `make` gives the workload of a batch so many times the recipe's."""
    shares = role_shares(make(1), device, sizes[0])
    points: list[Point] = []
    for devices in sizes:
        work = replace(make(devices // sizes[0] if setting.grows else 1), staleness=setting.staleness)
        layout = arranged(work, setting, devices, shares)
        found = fit(work, layout, device)
        timing = step_timing(work, layout, device, found.slots)
        speed = work.tokens / timing.seconds / devices
        points.append(Point(setting.name, devices, len(work.responses), timing, speed, found.fits))
    return points


def role_shares(work: Workload, device: Device, devices: int) -> dict[str, float]:
    """Share of a synchronous step's time that sampling, scoring and update take where they have all devices."""
    layout = arranged(work, Setting("synchronous"), devices, {})
    timing = step_timing(work, layout, device, fit(work, layout, device).slots)
    return {phase.name: phase.seconds / timing.seconds for phase in timing.phases}


def arranged(work: Workload, setting: Setting, devices: int, shares: dict[str, float]) -> Layout:
    """Synchronous: all roles share all devices. Otherwise each has its share of them, and at least one."""
    seats = max(1, len(work.seats))
    ranks, scorers, samplers = devices, max(1, devices // seats), devices
    if setting.staleness:
        ranks = max(1, round(devices * shares["update"]))
        scorers = max(1, round(devices * shares["scoring"] / seats))
        samplers = devices - ranks - seats * scorers
    parallel = min(setting.parallel, 2 ** (samplers.bit_length() - 1))
    return Layout(
        ranks=ranks,
        replicas=samplers // parallel,
        tensor_parallel=parallel,
        scorers=scorers,
        colocate=not setting.staleness,
        engine="vllm",
        slots=256,
        memory_share=0.9 if setting.staleness else 0.5,
        sleep=True,
        shard_group=min(GROUP, ranks) if setting.groups else None,
    )
