"""Which actor gets which devices: one bundle of a placement group per device, or per engine of several devices."""

from __future__ import annotations

from dataclasses import dataclass

from gopd.recipe import AnyRecipe, SampledRecipe


@dataclass(frozen=True)
class Seat:
    """An actor's bundle, and which of its devices it uses."""

    bundle: int
    devices: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Bundles of resources, and the seats of every role's actors in them; `shared`: several actors use a device."""

    shared: bool
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
        together = ", which share devices" if self.shared else ""
        return f"{len(self.learner)} learner ranks, {engines}, {scorers} scorers{together}"


def plan(recipe: AnyRecipe, *, gpu: bool) -> Plan:
    """The recipe's cluster section as bundles; on a machine without GPUs a device is a core."""
    section = recipe.cluster
    vllm = isinstance(recipe, SampledRecipe) and recipe.sampler.engine == "vllm"
    width = recipe.sampler.vllm.tensor_parallel if isinstance(recipe, SampledRecipe) and vllm else 1
    routes = recipe.teacher_routes() if isinstance(recipe, SampledRecipe) and recipe.scored else []
    scorers = [route for route in routes for _ in range(section.scorers_per_teacher)]
    counts = (section.learner_ranks, section.sampler_replicas, len(scorers))
    widths = (1, width, 1)
    if section.colocate:
        wanted = max(count * each for count, each in zip(counts, widths, strict=True))
        bundles = [_bundle(width, gpu)] * -(-wanted // width)
        seats = [
            [_shared_seat(i, each, width, len(bundles)) for i in range(count)]
            for count, each in zip(counts, widths, strict=True)
        ]
    else:
        bundles = [
            _bundle(each, gpu) for count, each in zip(counts, widths, strict=True) for _ in range(count)
        ]
        numbers = iter(range(len(bundles)))
        seats = [
            [Seat(next(numbers), tuple(range(each))) for _ in range(count)]
            for count, each in zip(counts, widths, strict=True)
        ]
    by_route: dict[str | None, list[Seat]] = {}
    for route, seat in zip(scorers, seats[2], strict=True):
        by_route.setdefault(route, []).append(seat)
    return Plan(section.colocate, bundles, seats[0], seats[1], by_route)


def _shared_seat(number: int, each: int, width: int, bundles: int) -> Seat:
    """Actors of one role side by side: each on the next device, or the next `each` devices."""
    first = number * each
    return Seat(first // width % bundles, tuple(range(first % width, first % width + each)))


def _bundle(devices: int, gpu: bool) -> dict[str, int]:
    return {"GPU": devices, "CPU": devices} if gpu else {"CPU": devices}
