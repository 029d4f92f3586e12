"""Kinds of devices: what their makers state, and what this machine measures. Nothing here has been run on a GPU."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass, replace

import torch

from gopd.cost import Limits, measure_limits
from gopd.errors import BadInput

LOCAL_LATENCY, REMOTE_LATENCY = 3e-6, 8e-6
"""Assumed seconds that one hop of a collective takes inside a node and between nodes; no datasheet states them."""
RESERVE = 0.08
"""Assumed share of a device's memory that is not the model's: context, communication buffers, fragmentation."""


@dataclass(frozen=True, slots=True)
class Device:
    """One device and its links. Bytes and bytes/s are decimal and per device; link rates are of one direction."""

    name: str
    memory: float
    flops: float
    """Dense products in the narrow dtype (on a CPU float32), FLOP/s."""
    bandwidth: float
    """Of the device's own memory."""
    local_link: float
    """To the devices of the same node."""
    remote_link: float
    """To another node: the network card that each device has for itself."""
    host_link: float
    """To the host's memory."""
    per_node: int
    update_share: float = 0.4
    """Share of `flops` that update and scoring are assumed to reach."""
    decode_share: float = 0.6
    """Share of `bandwidth` that decoding is assumed to reach."""
    narrow: bool = True
    """Whether it computes in bfloat16."""

    @property
    def usable(self) -> float:
        """Bytes that models may take."""
        return self.memory * (1 - RESERVE)

    @property
    def element(self) -> int:
        """Bytes of a number in computations."""
        return 2 if self.narrow else 4

    @property
    def limits(self) -> Limits:
        """What the device is assumed to reach."""
        return Limits(self.flops * self.update_share, self.bandwidth * self.decode_share)

    def reaching(self, update_share: float | None, decode_share: float | None) -> Device:
        """The same with other assumptions; None keeps one. Raises BadInput outside (0, 1]."""
        for name, share in (("--update-share", update_share), ("--decode-share", decode_share)):
            if share is not None and not 0 < share <= 1:
                raise BadInput(f"{name} {share}: a share of the device's rate lies above 0 and up to 1")
        return replace(
            self,
            update_share=self.update_share if update_share is None else update_share,
            decode_share=self.decode_share if decode_share is None else decode_share,
        )


# Sources: NVIDIA's datasheets of A100 80GB SXM, H100 SXM, H200 SXM, DGX B200 (an eighth of it) and L40S, dense bf16
# without sparsity; NVLink in one direction, which is half of the stated total. Network cards as in NVIDIA's DGX A100
# (200 Gb/s for each GPU), DGX H100, H200 and B200 (400 Gb/s). L40S has no NVLink: PCIe 4.0 x16, 32 GB/s, and the
# 200 Gb/s card for two GPUs of NVIDIA's OVX reference.
_GPUS = (
    Device("a100-80gb", 80e9, 312e12, 2039e9, 300e9, 25e9, 32e9, 8),
    Device("h100-80gb", 80e9, 989e12, 3350e9, 450e9, 50e9, 64e9, 8),
    Device("h200", 141e9, 989e12, 4800e9, 450e9, 50e9, 64e9, 8),
    Device("b200", 180e9, 2250e12, 8000e9, 900e9, 50e9, 64e9, 8),
    Device("l40s", 48e9, 362e12, 864e9, 32e9, 12.5e9, 32e9, 8),
)
GPUS = {device.name: device for device in _GPUS}


def gpu(name: str) -> Device:
    """The kind of that name; BadInput, with the nearest name, when it is not known."""
    found = GPUS.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), GPUS, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}? " if near else ""
        raise BadInput(f"--gpu {name}: unknown; {hint}known: {', '.join(GPUS)}")
    return found


def this_cpu() -> Device:
    """This machine: rates measured now (about a second), memory as the system states it.

    The shares are what updates and decoding of SmolLM2-135M reached in `docs/performance.md`.
    """
    limits = measure_limits(torch.device("cpu"))
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    rates = (limits.flops_per_second, limits.bytes_per_second)
    link = limits.bytes_per_second
    return Device("cpu", memory, *rates, link, link, link, 1, 0.65, 0.6, narrow=False)
