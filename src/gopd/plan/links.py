"""Seconds that collectives take: rings with a latency α for each hop, and bytes over the slowest link."""

from __future__ import annotations

import math

from gopd.plan.devices import LOCAL_LATENCY, REMOTE_LATENCY, Device


def link(device: Device, members: int) -> float:
    """Bytes/s of the slowest link of a group; groups that fit a node are taken to be in one."""
    return device.local_link if members <= device.per_node else device.remote_link


def hops_seconds(device: Device, members: int) -> float:
    """Latency of going once around a ring of so many."""
    nodes = -(-members // device.per_node)
    remote = nodes if nodes > 1 else 0
    return remote * REMOTE_LATENCY + max(0, members - 1 - remote) * LOCAL_LATENCY


def gather_seconds(device: Device, members: int, size: float, *, calls: int = 1) -> float:
    """All-gather, or reduce-scatter, of `size` bytes in all, in so many equal calls: each a ring."""
    if members == 1:
        return 0.0
    moved = size * (members - 1) / members
    return moved / link(device, members) + calls * hops_seconds(device, members)


def sum_seconds(device: Device, members: int, size: float, *, calls: int = 1, apart: bool = False) -> float:
    """All-reduce of `size` bytes on each: twice the traffic of a ring, with the latency of a tree.

    `apart`: every member is taken to sit in another node.
    """
    if members == 1:
        return 0.0
    near = members <= device.per_node and not apart
    latency, rate = (LOCAL_LATENCY, device.local_link) if near else (REMOTE_LATENCY, device.remote_link)
    moved = 2 * size * (members - 1) / members
    return moved / rate + calls * 2 * math.ceil(math.log2(members)) * latency


def spread_seconds(device: Device, receivers: int, size: float) -> float:
    """The same `size` bytes to each of so many, passed on in a pipeline."""
    return size / link(device, receivers + 1) + hops_seconds(device, receivers + 1)
