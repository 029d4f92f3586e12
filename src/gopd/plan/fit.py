"""Memory by role against what devices have: what fits, what does not, and what would."""

from __future__ import annotations

from dataclasses import dataclass

from gopd.plan.devices import Device
from gopd.plan.layout import Layout
from gopd.plan.memory import Numerics, Parts, cache_bytes, forward_bytes, scoring_memory, update_memory
from gopd.plan.sizes import ModelSizes
from gopd.plan.workload import Workload


@dataclass(frozen=True, slots=True)
class RoleMemory:
    """Bytes of one device of a role, part by part, against `room`. `advice` is what to change where it does not fit."""

    role: str
    parts: Parts
    room: float
    advice: str

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether it has room."""
        return self.total <= self.room


@dataclass(frozen=True, slots=True)
class Fit:
    """All roles, and the `slots` rows that an engine has memory to decode side by side."""

    roles: tuple[RoleMemory, ...]
    slots: int

    @property
    def fits(self) -> bool:
        """Whether every role does."""
        return all(role.fits for role in self.roles)


def fit(work: Workload, layout: Layout, device: Device) -> Fit:
    """Memory of every role. Roles that share devices leave each other less room: frozen models stay where they are, the
    learner's shards too unless offloaded; engines go while others compute if they sleep, and keep all if not.
    """
    learner = learner_memory(work, layout, device)
    scorer = scorer_memory(work, layout, device)
    resident = _resident(work, learner, scorer) if layout.together else Parts()
    roles, slots, engine = [], layout.slots, 0.0
    if work.sampled:
        sampler, slots = sampler_memory(work, layout, device, sum(resident.values()))
        roles.append(sampler)
        asleep = layout.sleep or layout.engine == "torch"
        engine = 0.0 if asleep or not layout.together else layout.memory_share * device.memory
    room = device.usable - engine
    frozen = {k: v for k, v in resident.items() if k.startswith("frozen")}
    advice = _learner_advice(layout, work)
    roles.append(RoleMemory("learner", frozen | learner, room, advice))
    if work.seats:
        if layout.together:
            scorer = {k: v for k, v in resident.items() if not k.startswith("frozen")} | scorer
        advice = "lower train.tokens_per_micro_batch, or use devices with more memory"
        if layout.together:
            advice = "set cluster.offload, use more devices, or give the scorers their own (cluster.colocate: false)"
        roles.append(RoleMemory("scorer", scorer, room, advice))
    return Fit(tuple(roles), slots)


def learner_memory(work: Workload, layout: Layout, device: Device) -> Parts:
    """Of a rank in the worst moment of an update; every token of a micro-batch is taken to be a response's.

    A row longer than the budget gets a micro-batch of its own.
    """
    tokens = _packed(work, layout.ranks)
    group = layout.shard_group or layout.ranks
    away = layout.offload and not layout.alone  # which needs FSDP2, also on one rank
    numerics = Numerics(device.element, group, layout.ranks > 1 or away, away)
    targets = max((len(seat.models) for seat in work.seats), default=0) if work.hidden else 0
    parts = update_memory(
        work.student,
        numerics,
        tokens=tokens,
        predicted=tokens,
        checkpointing=work.checkpointing,
        targets=targets,
    )
    if work.hidden and layout.alone:  # the whole batch's hidden states wait for the update
        numbers = sum(seat.share * m.hidden for seat in work.seats for m in seat.models)
        parts["targets"] += device.element * numbers * sum(work.responses)
    return parts


def _packed(work: Workload, ranks: int) -> int:
    """Tokens of the largest micro-batch: the budget, unless a row is longer or a rank's rows are fewer."""
    rows = -(-len(work.responses) // (work.updates * ranks))
    return min(max(work.budget, work.longest), rows * work.longest)


def scorer_memory(work: Workload, layout: Layout, device: Device) -> Parts:
    """Of the device whose scorers hold most. A process loads a model that it needs twice only once."""
    if not work.seats:
        return {}
    tokens = _packed(work, 1)
    busiest = max(
        scoring_memory(seat.models, device.element, tokens, tokens)["at work"] for seat in work.seats
    )
    processes = [seat.models for seat in work.seats for _ in range(layout.scorers)]
    if layout.alone:
        processes = [[model for models in processes for model in models]]
    held = sorted((_frozen_bytes(models, device.element) for models in processes), reverse=True)
    return {"frozen weights": sum(held[: layout.seats_per_device(work)]), "at work": busiest}


def _frozen_bytes(models: list[ModelSizes], element: int) -> float:
    distinct = {model.name: model.parameters for model in models}
    return float(element * sum(distinct.values()))


def _resident(work: Workload, learner: Parts, scorer: Parts) -> Parts:
    """What stays while others compute: shards and moments (gradients are let go after each step), frozen models."""
    kept = {k: v for k, v in learner.items() if k in ("weights", "optimizer")}
    return kept | {k: v for k, v in scorer.items() if k == "frozen weights"}


def sampler_memory(work: Workload, layout: Layout, device: Device, resident: float) -> tuple[RoleMemory, int]:
    """An engine's memory on one device, with as many rows as fit, and how many that is.

    vLLM takes its share of the device; rows are taken to hold their prompt and a mean response on average, and one row
    of the greatest length must fit. The embedded engine decodes with the learner's weights, and its cache has room for
    the longest row in every slot.
    """
    model, element, parallel = work.student, device.element, layout.tensor_parallel
    if layout.engine == "torch":
        parts = {"others": resident} if layout.together else {"weights": 4.0 * model.parameters}
        parts["cache"] = layout.slots * cache_bytes(model, element, work.longest)
        parts["at work"] = forward_bytes(model, element, 8192) + 8.0 * layout.slots * model.vocabulary
        advice = "decode with sampler.engine: vllm, whose cache grows with its tokens, or lower sampler.slots"
        return RoleMemory("sampler", parts, device.usable, advice), layout.slots
    parts = {"weights": float(element * model.parameters) / parallel}
    parts["at work"] = forward_bytes(model, element, layout.batched_tokens) / parallel
    parts["at work"] += 8.0 * layout.slots * model.vocabulary / parallel
    own = layout.memory_share * device.memory
    left = own - sum(parts.values())
    row = cache_bytes(model, element, work.prompt + work.mean_response) / parallel
    longest = cache_bytes(model, element, work.longest) / parallel
    slots = max(1, min(layout.slots, int(left / row)))
    parts["cache"] = max(longest, slots * row)
    parts["rest of its share"] = max(0.0, own - sum(parts.values()))
    advice = "raise sampler.vllm.tensor_parallel or memory_share"
    if resident:
        parts["others"] = resident
        advice = "lower sampler.vllm.memory_share, set cluster.offload, or give the engines their own devices"
    return RoleMemory("sampler", parts, device.usable, advice), slots


def _learner_advice(layout: Layout, work: Workload) -> str:
    """What would make a learner rank smaller, the cheapest first."""
    found = [] if work.checkpointing else ["set student.gradient_checkpointing"]
    found += [] if layout.alone else ["raise cluster.learner_ranks"]
    if work.budget > work.longest:
        found.append("lower train.tokens_per_micro_batch")
    found += [] if layout.offload or layout.alone else ["set cluster.offload"]
    return ", ".join(found) if found else "use a device with more memory"
