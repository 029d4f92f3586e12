"""Several processes that share one student: who has which part (FSDP2), and what they tell each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among those that share a student. `mesh` is None where it is alone."""

    rank: int = 0
    count: int = 1
    mesh: DeviceMesh | None = None

    @classmethod
    def joined(cls, device: torch.device) -> Ranks:
        """All ranks of the default process group, which must be up."""
        count = dist.get_world_size()
        return cls(dist.get_rank(), count, init_device_mesh(device.type, (count,)))

    def total(self, value: float) -> float:
        """The sum of every rank's value, the same on all ranks."""
        if self.mesh is None:
            return value
        summed = torch.tensor(value, dtype=torch.float64, device=self.mesh.device_type)
        dist.all_reduce(summed)
        return float(summed)


ALONE = Ranks()


class Root(nn.Module):
    """The whole student as FSDP's outermost module.

    It runs computations that need body and head together, with the weights that belong to no block (embeddings, last
    norm, head) whole inside.
    """

    def __init__(self, module: PreTrainedModel) -> None:
        super().__init__()
        self.module = module

    def forward(self, call: Callable[[], T]) -> T:
        """The result of `call`."""
        return call()


def shard(module: PreTrainedModel, ranks: Ranks, *, narrow: bool, offload: bool) -> Root:
    """Cuts a model's weights into one part per rank, block by block; gradients come as sums over ranks.

    Weights may be in host memory before: no more than a block of them is on a device beside this rank's parts.
    `narrow`: blocks compute in bfloat16, while weights and sums of gradients stay float32. `offload`: parts, gradients
    and optimizer state live in host memory. Blocks are what Transformers says must not be split over devices.
    """
    assert ranks.mesh is not None
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if narrow else None, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    away = CPUOffloadPolicy(pin_memory=ranks.mesh.device_type == "cuda") if offload else OffloadPolicy()
    blocks = set(module._no_split_modules or ())
    root = Root(module)
    for part in [m for m in module.modules() if type(m).__name__ in blocks] + [root]:
        fully_shard(part, mesh=ranks.mesh, mp_policy=precision, offload_policy=away)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no other
    return root


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all ranks, which must all ask for it; itself where it is not sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def first_known(rows: Sequence[Sequence[T | None]]) -> list[T | None]:
    """Every row's result from the rank that has one."""
    return [
        next((found for found in results if found is not None), None) for results in zip(*rows, strict=True)
    ]
