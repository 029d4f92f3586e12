"""What runs in the processes of a cluster: a learner's rank, a sampling engine, a teacher with its reference.

Weights and hidden states go from actor to actor through Ray's object store; the driver sees references only.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
import torch.distributed as dist
from torch import Tensor

from gopd.guard import Bounds
from gopd.learner import Update
from gopd.memory import keep_freed_memory
from gopd.model import load_model
from gopd.recipe import GrpoRecipe, OpdRecipe
from gopd.sampler import Request, Response, Sampler
from gopd.sampler.torch import TorchSampler
from gopd.scorer import Scorer
from gopd.sections import SamplingSection
from gopd.setup import device_of, load_student, make_learner, slots_of, student_vllm
from gopd.sharding import Ranks
from gopd.types import Hidden, HiddenHere, Rollout, Scores, TokenTerms

BUCKET_BYTES = 2**29
"""Weights travel in pieces of about this size."""

REPORT_SECONDS = 0.2
"""How often an engine tells what it has finished."""

Weights = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Piece:
    """What a sampling stream carries: rows finished since the last piece, and tokens drawn in all."""

    rows: list[tuple[int, Response]]
    tokens: int


@dataclass(frozen=True)
class Place:
    """Where an actor runs: the driver's folder, and which of how many of its group it is; they share a CPU's cores.

    `gpus` are the devices it is to use where several actors share them; None: those that Ray gives it.
    """

    folder: str
    index: int
    count: int
    gpus: list[int] | None


@dataclass(frozen=True)
class HiddenAway:
    """Hidden states of a row in the object store."""

    reference: Any

    def states(self) -> tuple[Tensor, Tensor | None]:
        """Fetches them, wherever they are."""
        found: HiddenHere = ray.get(self.reference)
        return found.states()


class Actor:
    """What all have in common."""

    def __init__(self, recipe: OpdRecipe | GrpoRecipe, place: Place) -> None:
        os.chdir(place.folder)
        if place.gpus is not None:  # before CUDA is first used
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, place.gpus))
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // place.count))
        keep_freed_memory()
        self.recipe, self.place = recipe, place
        self.device, self.dtype = device_of(recipe)

    def ping(self) -> None:
        """Answers from a thread of its own, for as long as the process runs at all."""

    def load(self) -> None:
        """Loads what it works with; the first call that an actor gets."""


class Holder:
    """Keeps the GPUs of a bundle for those who share them."""

    def gpus(self) -> list[int]:
        """Their numbers on this node."""
        return [int(number) for number in ray.get_gpu_ids()]


class LearnerRank(Actor):
    """One of the processes that share the student."""

    def __init__(self, recipe: OpdRecipe | GrpoRecipe, place: Place, updates: int) -> None:
        super().__init__(recipe, place)
        self.rank, self.total = place.index, updates
        self.heads: dict[str | None, Any] = {}

    def meeting(self) -> str:
        """An address where the ranks can meet: this node's, with a free port."""
        address: str = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind((address, 0))
            return f"tcp://{address}:{probe.getsockname()[1]}"

    def join(self, meeting: str, heads: dict[str | None, Any]) -> None:
        """Meets the others and loads this rank's part of the student; `heads` are references to frozen heads."""
        os.environ["GLOO_SOCKET_IFNAME"] = _interface(ray.util.get_node_ip_address())
        backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=self.rank, world_size=self.place.count)
        student = load_student(self.recipe, torch.device("cpu"), self.dtype)  # no device need hold it whole
        ranks = Ranks.joined(self.device)
        student.shard(ranks, offload=self.recipe.cluster.offload)
        self.heads = heads
        self.learner = make_learner(self.recipe, student, self._heads, self.total, ranks)

    def _heads(self, route: str | None) -> tuple[Tensor, Tensor | None]:
        """Heads of a route's teacher and reference, fetched when they are first needed."""
        if not isinstance(self.heads[route], tuple):
            teacher_VD, reference_VD = ray.get(self.heads[route])
            away = None if reference_VD is None else reference_VD.to(self.device)
            self.heads[route] = (teacher_VD.to(self.device), away)
        found: tuple[Tensor, Tensor | None] = self.heads[route]
        return found

    def update(
        self,
        rollouts: Sequence[Rollout],
        scores: Sequence[Scores | None],
        terms: Sequence[TokenTerms | None],
        bounds: Bounds,
    ) -> Update:
        """One optimizer step, unless it is out of bounds; reports of this rank's rows."""
        return self.learner.update(rollouts, scores, terms, bounds=bounds)

    def logprobs(self, rollouts: Sequence[Rollout]) -> dict[int, Tensor]:
        """Of this rank's rows."""
        return self.learner.logprobs(rollouts)

    def kl_to_target(
        self, rollouts: Sequence[Rollout], scores: Sequence[Scores | None], temperature: float
    ) -> dict[int, float]:
        """Of this rank's rows."""
        return self.learner.kl_to_target(rollouts, scores, temperature)

    def weights(self, dtype: torch.dtype) -> Iterator[Weights]:
        """The student's weights in pieces, from the first rank; the others help to gather them."""
        bucket: Weights = []
        filled = 0
        for name, weight in self.learner.weights():
            if self.rank == 0:
                bucket.append((name, weight.to("cpu", dtype)))
                filled += bucket[-1][1].nbytes
                if filled >= BUCKET_BYTES:
                    yield bucket
                    bucket, filled = [], 0
        if bucket:
            yield bucket

    def save(self, folder: Path) -> None:
        """Writes this rank's part of the checkpoint."""
        self.learner.save(folder)

    def restore(self, folder: Path, updates: int) -> None:
        """Takes up this rank's part of a checkpoint."""
        self.learner.load(folder, updates)

    def export(self, folder: Path) -> None:
        """The first rank writes the student; the others help to gather it."""
        self.learner.export(folder)

    def sees(self, folder: Path) -> bool:
        """Whether the run folder is there on this node."""
        return folder.is_dir()


class SamplingEngine(Actor):
    """An engine with the student's weights."""

    def __init__(self, recipe: OpdRecipe | GrpoRecipe, place: Place, longest: int) -> None:
        super().__init__(recipe, place)
        self.longest = longest
        self.version = 0
        self._offered: tuple[Sequence[Any], int] | None = None

    def load(self) -> None:
        """Starts the engine that the recipe asks for, with the student's initial weights."""
        if self.recipe.sampler.engine == "vllm":
            self._own_cores()
            self.sampler: Sampler = student_vllm(self.recipe, self.longest)
            return
        narrow = self.dtype == torch.bfloat16
        student = load_model(
            self.recipe.student, "student", device=self.device, dtype=self.dtype, narrow=narrow
        )
        self.sampler = TorchSampler(student.freeze(), slots_of(self.recipe))

    def _own_cores(self) -> None:
        """On a CPU vLLM binds its threads to cores: engines on one machine must not all take the same."""
        cores = sorted(os.sched_getaffinity(0))
        mine = cores[self.place.index :: self.place.count]
        if self.device.type == "cpu" and len(mine) >= self.recipe.sampler.vllm.tensor_parallel:
            os.sched_setaffinity(0, mine)

    def sample(self, requests: Sequence[Request], sampling: SamplingSection) -> Iterator[Piece]:
        """Responses as they are finished, with their requests' numbers, and how far the others are."""
        yield from stream(self.sampler, requests, sampling, self._take_offered)

    def update(self, pieces: Sequence[Any], version: int) -> None:
        """Takes new weights, by references to their pieces, if they are newer than its own."""
        if version > self.version:
            self.sampler.update((pair for piece in pieces for pair in ray.get(piece)), version)
            self.version = version

    def offer(self, pieces: Sequence[Any], version: int) -> None:
        """Notes newer weights, for a thread that is sampling; the call returns at once."""
        self._offered = (pieces, version)

    def _take_offered(self) -> None:
        """Between two tokens."""
        offered, self._offered = self._offered, None
        if offered is not None:
            self.update(*offered)


class TeacherEngine(Actor):
    """A teacher with its reference; for method grpo the reference alone."""

    def __init__(self, recipe: OpdRecipe | GrpoRecipe, place: Place, teacher: str | None) -> None:
        super().__init__(recipe, place)
        self.teacher = teacher

    def load(self) -> None:
        """Loads the models."""
        routes = [self.teacher]
        self.scorer = Scorer(self.recipe, None, device=self.device, dtype=self.dtype, routes=routes)

    def score(
        self, rollouts: Sequence[Rollout], temperature: float, keep_hidden: bool
    ) -> list[Scores | None] | tuple[list[Scores | None], *tuple[HiddenHere | None, ...]]:
        """Scores; with `keep_hidden` also every row's hidden states, apart so that each can stay where it is."""
        scores = self.scorer.score(rollouts, temperature=temperature, keep_hidden=keep_hidden)
        if not keep_hidden:
            return scores
        plain = [None if score is None else replace(score, hidden=None) for score in scores]
        return (plain, *(None if s is None or s.hidden is None else _on_host(s.hidden) for s in scores))

    def heads(self) -> tuple[Tensor, Tensor | None]:
        """The heads [V, D] of teacher and reference."""
        teacher_VD, reference_VD = self.scorer.heads(self.teacher)
        return teacher_VD.cpu(), None if reference_VD is None else reference_VD.cpu()

    def sample(self, requests: Sequence[Request], sampling: SamplingSection) -> Iterator[Piece]:
        """The teacher's own responses, as they are finished."""
        assert self.teacher is not None
        yield from stream(self.scorer.sampler(self.teacher), requests, sampling)


def _on_host(hidden: Hidden) -> HiddenHere:
    teacher_RD, reference_RD = hidden.states()
    return HiddenHere(teacher_RD.cpu(), None if reference_RD is None else reference_RD.cpu())


def stream(
    sampler: Sampler,
    requests: Sequence[Request],
    sampling: SamplingSection,
    between: Callable[[], None] = lambda: None,
) -> Iterator[Piece]:
    """Runs a sampler in a thread and passes on what it reports, every now and then; `between` runs between tokens."""
    reports: queue.SimpleQueue[tuple[int, Response] | int | BaseException | None] = queue.SimpleQueue()

    def progress(done: int, total: int, tokens: int) -> None:
        between()
        reports.put(tokens)

    def work() -> None:
        try:
            sampler.sample(requests, sampling, progress, lambda *finished: reports.put(finished))
            reports.put(None)
        except BaseException as error:  # whatever it is, it is raised where it can be seen
            reports.put(error)

    threading.Thread(target=work, daemon=True).start()
    rows, tokens, told = list[tuple[int, Response]](), 0, time.monotonic()
    while (report := reports.get()) is not None:
        if isinstance(report, BaseException):
            raise report
        if isinstance(report, int):
            tokens = report
        else:
            rows.append(report)
        if time.monotonic() - told > REPORT_SECONDS:
            yield Piece(rows, tokens)
            rows, told = [], time.monotonic()
    yield Piece(rows, tokens)


def _interface(address: str) -> str:
    """The network interface that an address of this node belongs to; loopback has many more than it lists."""
    known: dict[str, list[Any]] = psutil.net_if_addrs()
    return next((name for name, found in known.items() if any(a.address == address for a in found)), "lo")
