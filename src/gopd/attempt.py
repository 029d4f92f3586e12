"""One attempt at a run: the checkpoint it goes on from, and everything it needs, loaded and checked."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gopd.checkpoint import RunFolder
from gopd.errors import BadInput
from gopd.files import discard
from gopd.interrupt import Stop
from gopd.memory import keep_freed_memory
from gopd.recipe import AnyRecipe, SftRecipe
from gopd.roles import Roles
from gopd.setup import LocalRoles, Task, prepare
from gopd.tracking import Trackers, check_trackers

if TYPE_CHECKING:
    from gopd.cluster.placement import Plan

Found = tuple[int, Path, dict[str, Any]]
"""A checkpoint: step, folder and state."""


@dataclass
class Attempt:
    """What a run's attempts share: where they run, whether to stop, and what those before held of a cluster."""

    cluster: str | None
    stop: Stop = field(default_factory=Stop)
    needed: Plan | None = None


def set_up(recipe: AnyRecipe, run: RunFolder, attempt: Attempt) -> tuple[Found | None, Task, Roles, Trackers]:
    """The checkpoint to go on from, and everything loaded; bad input leaves no new run folder behind."""
    try:
        check_trackers(recipe)
        keep_freed_memory()
        found = run.latest()
        task = prepare(recipe)
        roles = LocalRoles(recipe, task) if attempt.cluster is None else _on_cluster(recipe, task, attempt)
        try:
            roles.check_folder(run.path)
            trackers = Trackers(recipe, run, after=found[0] if found else -1)
        except BaseException:
            roles.close()
            raise
        return found, task, roles, trackers
    except BadInput:
        if not run.resumed:
            discard(run.path)
        raise


def _on_cluster(recipe: AnyRecipe, task: Task, attempt: Attempt) -> Roles:
    if importlib.util.find_spec("ray") is None:
        raise BadInput("--cluster: ray is not installed; `pip install gopd[ray]`")
    if isinstance(recipe, SftRecipe):
        raise BadInput("method sft has no sampler to place on a cluster; run it without --cluster")
    if recipe.tracking.profile:
        raise BadInput("tracking.profile measures one process; leave it off with --cluster")
    from gopd.cluster.roles import ClusterRoles

    assert attempt.cluster is not None
    return ClusterRoles(recipe, task, attempt.cluster, attempt.needed)
