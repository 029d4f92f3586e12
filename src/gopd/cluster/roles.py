"""All roles on a cluster: actors are placed, loaded, brought together, and ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from gopd.cluster.actors import Holder, LearnerRank, Place, SamplingEngine, TeacherEngine
from gopd.cluster.learning import LearnerGroup
from gopd.cluster.nodes import await_devices, check_cores, check_devices, has_gpus, joined
from gopd.cluster.placement import Plan, Seat, plan
from gopd.cluster.sampling import SamplerGroup
from gopd.cluster.scoring import ScorerGroup
from gopd.cluster.watch import HEALTH, Member, Watch, value
from gopd.errors import BadInput, Lost
from gopd.recipe import GrpoRecipe, OpdRecipe
from gopd.roles import Roles
from gopd.setup import Task


class ClusterRoles(Roles):
    """Actor groups in the place of each role."""

    learner: LearnerGroup
    sampler: SamplerGroup

    def __init__(
        self, recipe: OpdRecipe | GrpoRecipe, task: Task, address: str, needed: Plan | None = None
    ) -> None:
        """`needed` is what an attempt held that was lost: the cluster may have to find it again, and is waited for.

        Raises BadInput where the cluster does not suffice, and Lost where it does no more.
        """
        section = recipe.cluster
        self.recipe, self.task = recipe, task
        self.watch, self.serving = (Watch(section.timeout, section.heartbeat) for _ in range(2))
        self._published: tuple[int, list[Any]] = (0, [])
        self._adopted = self._offered = 0
        on_cores = plan(recipe, gpu=False)
        if address == "local" and not torch.cuda.is_available():
            check_cores(on_cores)
        with ExitStack() as stack:
            stack.enter_context(joined(address, on_cores.total("CPU")))
            if needed is not None:
                await_devices(needed, section.timeout)
            self._gpu = gpu = has_gpus() and recipe.train.device != "cpu"
            if recipe.train.device == "cuda" and not gpu:
                raise BadInput(
                    "train.device is cuda, but the cluster has 0 GPUs; use auto or cpu, or add nodes with GPUs"
                )
            self.held = self.plan = plan(recipe, gpu=gpu)
            narrow = recipe.train.compute_dtype == "bfloat16" or (
                recipe.train.compute_dtype == "auto" and gpu
            )
            self._dtype = torch.bfloat16 if narrow else torch.float32
            check_devices(self.plan)
            self._group = placement_group(self.plan.bundles, strategy="PACK")
            if not self._group.wait(section.timeout):
                raise (BadInput if needed is None else Lost)(
                    f"the cluster's devices are taken: {self.plan.describe()} did not get theirs within "
                    f"{section.timeout:.0f} s"
                )
            self._held = self._hold()
            self._start()
            self._stack = stack.pop_all()

    def _start(self) -> None:
        """Makes all actors, waits until they are loaded, and brings the learner's ranks together."""
        recipe, task = self.recipe, self.task
        learners = self._members("learner rank", LearnerRank, self.plan.learner, task.updates(recipe))
        samplers = self._members("sampler", SamplingEngine, self.plan.samplers, task.longest)
        scorers = {
            route: self._members(f"scorer of {route}", TeacherEngine, seats, route)
            for route, seats in self.plan.scorers.items()
        }
        everyone = [*learners, *samplers, *(m for group in scorers.values() for m in group)]
        for reference, member in self.watch.each({m.loaded: m for m in everyone}):
            value(reference, member)
        heads = {route: group[0].handle.heads.remote() for route, group in scorers.items()}
        (meeting,) = self.watch.all(learners[:1], lambda rank: rank.meeting.remote())
        self.watch.all(learners, lambda rank: rank.join.remote(meeting, heads))
        lora = recipe.student.lora is not None  # engines have adapters merged in, and round differently
        self.learner = LearnerGroup(learners, self.watch)
        exact = recipe.sampler.engine == "torch" and self._dtype == torch.float32 and not lora
        self.sampler = SamplerGroup(samplers, self.serving, exact=exact)
        self.scorer = ScorerGroup(scorers, self.serving) if scorers else None

    def _members(self, name: str, actor: type, seats: Sequence[Seat], *arguments: Any) -> list[Member]:
        """A group of actors, in their seats."""
        return [
            Member(f"{name} {i}", self._maker(actor, seat, self._place(seat, i, len(seats)), *arguments))
            for i, seat in enumerate(seats)
        ]

    def _place(self, seat: Seat, index: int, count: int) -> Place:
        held = self._held[seat.bundle] if self._held else None
        return Place(os.getcwd(), index, count, None if held is None else [held[d] for d in seat.devices])

    def _maker(self, actor: type, seat: Seat, place: Place, *arguments: Any) -> Callable[[], Any]:
        """What makes one actor, again and again, in its seat. Where devices are shared Ray gives none of them away."""
        amount = 0 if self.plan.shared else len(seat.devices)
        remote = ray.remote(concurrency_groups={HEALTH: 1})(actor).options(
            num_cpus=0 if self._gpu else amount,
            num_gpus=amount if self._gpu else 0,
            scheduling_strategy=self._in(seat.bundle),
        )
        return lambda: remote.remote(self.recipe, place, *arguments)

    def _in(self, bundle: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)

    def _hold(self) -> list[list[int]]:
        """The GPUs of every bundle, taken once by an actor of its own so that all others may share them."""
        if not (self.plan.shared and self._gpu):
            return []
        self._holders = [
            ray.remote(Holder)
            .options(num_cpus=0, num_gpus=bundle["GPU"], scheduling_strategy=self._in(i))
            .remote()
            for i, bundle in enumerate(self.plan.bundles)
        ]
        held: list[list[int]] = ray.get([holder.gpus.remote() for holder in self._holders])
        return held

    def publish(self, version: int) -> None:
        """Has the learner lay out its weights, those after step `version`, for samplers to take."""
        self._published = (version, self.learner.weights(self._dtype))

    def adopt(self) -> int:
        """Lets samplers take the last weights that were laid out; returns their version."""
        version, pieces = self._published  # by another thread, which may be laying out the next ones
        if version != self._adopted:
            self.sampler.adopt(pieces, version)
            self._adopted = self._offered = version
        return version

    def offer(self) -> None:
        """Tells engines of weights that were laid out since they began to sample; they take them between two tokens."""
        version, pieces = self._published
        if version != self._offered:
            self.sampler.offer(pieces, version)
            self._offered = version

    def call_off(self) -> None:
        """A thread that waits for samplers or scorers gets CalledOff."""
        self.serving.call_off()

    def check_folder(self, folder: Path) -> None:
        """BadInput when a learner rank's node has another disk."""
        if not self.learner.see(folder):
            raise BadInput(
                f"the run folder {folder.absolute()} is not there on every node; put tracking.folder on a disk that "
                "all nodes share"
            )

    def close(self) -> None:
        """Ends all actors; leaves the cluster, or ends it where it was made for this."""
        self._stack.close()
