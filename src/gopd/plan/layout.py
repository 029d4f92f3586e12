"""Who runs where: a cluster section as a plan sees it, and whether it can be at all."""

from __future__ import annotations

from dataclasses import dataclass

from gopd.errors import BadInput
from gopd.plan.devices import Device
from gopd.plan.workload import Workload
from gopd.recipe import AnyRecipe, SampledRecipe


@dataclass(frozen=True, slots=True)
class Layout:
    """Processes and devices of each role. `alone`: all in one process on one device, as `gopd train` without cluster.

    `shard_group`: ranks that share one copy of the weights; None: all of them (what gopd does).
    """

    ranks: int = 1
    replicas: int = 1
    tensor_parallel: int = 1
    scorers: int = 1
    """For each teacher."""
    colocate: bool = False
    offload: bool = False
    engine: str = "torch"
    slots: int = 64
    memory_share: float = 0.9
    batched_tokens: int = 8192
    sleep: bool = False
    alone: bool = False
    shard_group: int | None = None

    @property
    def together(self) -> bool:
        """Whether roles share devices."""
        return self.colocate or self.alone

    def devices(self, work: Workload) -> int:
        """How many devices it takes."""
        samplers = self.replicas * self.tensor_parallel if work.sampled else 0
        scorers = len(work.seats) * self.scorers
        if self.alone:
            return 1
        return max(self.ranks, samplers) if self.colocate else self.ranks + samplers + scorers

    def seats_per_device(self, work: Workload) -> int:
        """Scorers that the fullest device holds."""
        if not work.seats:
            return 0
        return -(-len(work.seats) * self.scorers // self.devices(work)) if self.together else 1


def layout_of(recipe: AnyRecipe, *, alone: bool) -> Layout:
    """The recipe's own cluster section."""
    cluster = recipe.cluster
    if not isinstance(recipe, SampledRecipe):
        return Layout(ranks=cluster.learner_ranks, colocate=False, offload=cluster.offload, alone=alone)
    sampler, vllm = recipe.sampler, recipe.sampler.vllm
    narrow = sampler.engine == "vllm"
    return Layout(
        ranks=1 if alone else cluster.learner_ranks,
        replicas=1 if alone else cluster.sampler_replicas,
        tensor_parallel=vllm.tensor_parallel if narrow else 1,
        scorers=1 if alone else cluster.scorers_per_teacher,
        colocate=cluster.colocate,
        offload=cluster.offload,
        engine=sampler.engine,
        slots=vllm.max_sequences if narrow else sampler.slots,
        memory_share=vllm.memory_share,
        batched_tokens=vllm.max_batched_tokens,
        sleep=vllm.sleep,
        alone=alone,
    )


def check_layout(layout: Layout, work: Workload, device: Device, count: int) -> None:
    """Raises BadInput for what no amount of memory would make possible."""
    needed = layout.devices(work)
    if needed > count:
        raise BadInput(
            f"the cluster section takes {needed} devices ({_account(layout, work)}), and there are {count}; lower "
            "cluster.learner_ranks, sampler_replicas or scorers_per_teacher, share devices by cluster.colocate, or "
            "give more --gpus"
        )
    parallel, model = layout.tensor_parallel, work.student
    if work.sampled and model.heads % parallel:
        raise BadInput(
            f"sampler.vllm.tensor_parallel {parallel} does not divide the {model.heads} attention heads of "
            f"{model.name}; possible: {', '.join(str(n) for n in possible_parallel(model.heads, device.per_node))}"
        )
    if work.sampled and parallel > device.per_node:
        raise BadInput(
            f"sampler.vllm.tensor_parallel {parallel}: a node of {device.name} has {device.per_node} devices, and an "
            "engine spread over more is not planned"
        )


def possible_parallel(heads: int, per_node: int) -> list[int]:
    """Devices of one node that can share the attention heads equally."""
    return [n for n in range(1, per_node + 1) if heads % n == 0 and per_node % n == 0]


def _account(layout: Layout, work: Workload) -> str:
    samplers = layout.replicas * layout.tensor_parallel if work.sampled else 0
    named = {"learner": layout.ranks, "samplers": samplers, "scorers": len(work.seats) * layout.scorers}
    return ", ".join(f"{role} {count}" for role, count in named.items() if count)
