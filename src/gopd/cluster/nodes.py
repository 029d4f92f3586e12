"""Finding a cluster, or making one of this machine; and what a recipe needs of it."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import ray

from gopd.cluster.placement import Plan
from gopd.errors import BadInput, Lost

log = logging.getLogger(__name__)

TESTED = "2.60"
"""The minor version of Ray that this was tried with."""
CONNECT_SECONDS = 5.0
POLL_SECONDS = 2.0
"""Between looks for devices that were lost."""
LEAST_SHARED_MEMORY = 512 * 2**20
"""Bytes of shared memory below which Ray's object store has no room for weights and rollouts."""


@contextmanager
def joined(address: str, cores: int) -> Iterator[None]:
    """Connected to a cluster while inside: `local` makes one of this machine, `auto` finds the one this runs in.

    Ray counts cores, and a cluster made here has at least `cores`, however many there are. Raises BadInput when there
    is no cluster to join.
    """
    _check_version()
    if address not in ("local", "auto"):
        _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        _check_shared_memory()
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # it listens to this machine only
        os.environ.setdefault(
            "OMP_WAIT_POLICY", "PASSIVE"
        )  # threads that wait leave the cores to other actors
    try:
        ray.init(
            address=address,
            num_cpus=max(cores, os.cpu_count() or 1) if address == "local" else None,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="gopd",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> BadInput:
    return BadInput(
        f"--cluster {address}: no Ray cluster to join ({' '.join(str(error).split())[:300]}); start one by "
        "`ray start --head`, give its address, or use --cluster local"
    )


def _check_version() -> None:
    if version("ray").split(".")[:2] != TESTED.split("."):
        log.warning("ray is %s here, and this was tested with %s only", version("ray"), TESTED)


def _check_shared_memory() -> None:
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free) < LEAST_SHARED_MEMORY:
        raise BadInput(
            f"/dev/shm has {free / 2**20:.0f} MiB free, and Ray keeps weights and rollouts there; give it more than "
            f"{LEAST_SHARED_MEMORY / 2**20:.0f} MiB (Docker: --shm-size=8g)"
        )


def check_cores(plan: Plan) -> None:
    """BadInput when one role has more actors than this machine has cores: they compute at the same time.

    Different roles may share cores, as they mostly take turns.
    """
    cores = os.cpu_count() or 1
    for key, seats in (("learner_ranks", plan.learner), ("sampler_replicas", plan.samplers)):
        wanted = sum(len(seat.devices) for seat in seats)
        if wanted > cores:
            raise BadInput(
                f"cluster.{key}: {wanted} processes at once, and this machine has {cores} cores; lower it"
            )


def await_devices(plan: Plan, seconds: float) -> None:
    """Waits until the cluster has what it had before a node was lost. Raises Lost when that takes too long."""
    end = time.monotonic() + seconds
    while True:
        try:
            return check_devices(plan)
        except BadInput as error:
            if time.monotonic() > end:
                raise Lost(f"devices that were lost did not come back in {seconds:.0f} s: {error}") from error
        time.sleep(POLL_SECONDS)


def has_gpus() -> bool:
    """Whether any node of the cluster has one."""
    return bool(ray.cluster_resources().get("GPU", 0))


def check_devices(plan: Plan) -> None:
    """BadInput when the cluster has fewer devices than the plan needs."""
    have = ray.cluster_resources()
    for kind in ("GPU", "CPU"):
        if plan.total(kind) > have.get(kind, 0):
            raise BadInput(
                f"the cluster has {have.get(kind, 0):.0f} {kind}s, and the recipe needs {plan.total(kind)}: "
                f"{plan.describe()}; lower cluster.learner_ranks, cluster.sampler_replicas or "
                "cluster.scorers_per_teacher, set cluster.colocate, or add nodes"
            )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for bundle in plan.bundles:
        if not any(all(node.get(kind, 0) >= count for kind, count in bundle.items()) for node in nodes):
            raise BadInput(f"no node has {bundle} for one engine; lower sampler.vllm.tensor_parallel")
