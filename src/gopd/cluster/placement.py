"""Which actor gets which devices: one bundle of a placement group per device, or per engine of several devices."""

from __future__ import annotations

from dataclasses import dataclass

from gopd.recipe import AnyRecipe, OpdRecipe, SampledRecipe


@dataclass(frozen=True)
class Seat:
    """An actor's bundle, and its share of it."""

    bundle: int
    share: float


@dataclass(frozen=True)
class Plan:
    """Bundles of resources, and the seats of every role's actors in them."""

    bundles: list[dict[str, int]]
    learner: list[Seat]
    samplers: list[Seat]
    scorers: dict[str | None, list[Seat]]

    def total(self, kind: str) -> int:
        """Devices of a kind that all bundles hold."""
        return sum(bundle.get(kind, 0) for bundle in self.bundles)

    def describe(self) -> str:
        """In words, for messages."""
        scorers = sum(map(len, self.scorers.values()))
        each = max(max(bundle.values()) for bundle in self.bundles)
        engines = f"{len(self.samplers)} samplers" + (f" of {each} devices" if each > 1 else "")
        actors = len(self.learner) + len(self.samplers) + scorers
        together = ", which share devices" if len(self.bundles) < actors else ""
        return f"{len(self.learner)} learner ranks, {engines}, {scorers} scorers{together}"


def plan(recipe: AnyRecipe, *, gpu: bool) -> Plan:
    """The recipe's cluster section as bundles; on a machine without GPUs a device is a core."""
    section = recipe.cluster
    vllm = isinstance(recipe, SampledRecipe) and recipe.sampler.engine == "vllm"
    width = recipe.sampler.vllm.tensor_parallel if isinstance(recipe, SampledRecipe) and vllm else 1
    routes: list[str | None] = []
    if isinstance(recipe, OpdRecipe):
        routes = list(recipe.teachers)
    elif isinstance(recipe, SampledRecipe) and recipe.grpo.kl_weight > 0:
        routes = [None]
    scorers = [route for route in routes for _ in range(section.scorers_per_teacher)]
    counts = (section.learner_ranks, section.sampler_replicas, len(scorers))
    sizes = (1, width, 1)
    if section.colocate:
        number = max(count * size // width for count, size in zip(counts, sizes, strict=True)) or 1
        bundles = [_bundle(width, gpu)] * number
        users = [0] * number
        placed = []
        for count, size in zip(counts, sizes, strict=True):
            places = [i * size // width % number for i in range(count)]
            for place in places:
                users[place] += 1
            placed.append(places)
        seats = [[Seat(place, 1 / users[place]) for place in places] for places in placed]
    else:
        bundles = [
            _bundle(size, gpu) for count, size in zip(counts, sizes, strict=True) for _ in range(count)
        ]
        starts = [0, counts[0], counts[0] + counts[1]]
        seats = [
            [Seat(start + i, 1.0) for i in range(count)] for start, count in zip(starts, counts, strict=True)
        ]
    by_route: dict[str | None, list[Seat]] = {}
    for route, seat in zip(scorers, seats[2], strict=True):
        by_route.setdefault(route, []).append(seat)
    return Plan(bundles, seats[0], seats[1], by_route)


def _bundle(devices: int, gpu: bool) -> dict[str, int]:
    return {"GPU": devices, "CPU": devices} if gpu else {"CPU": devices}
