"""What the doctor has seen: gathered once, looked at by every check."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gopd.estimates import Estimate
from gopd.model import Description
from gopd.plan.devices import Device
from gopd.recipe import AnyRecipe
from gopd.rollouts import PromptSet
from gopd.setup import Task
from gopd.types import Rollout, Scores


@dataclass(frozen=True, slots=True)
class Request:
    """What the doctor was asked: a recipe, how it was written on the command line, and how much to look at."""

    recipe: AnyRecipe
    path: str
    overrides: Sequence[str] = ()
    rows: int = 32
    """Rows of the training data."""
    problems: int = 64
    """Validation problems of each domain."""

    def command(self, name: str, *more: str) -> str:
        """A gopd command on this recipe, to be typed."""
        return shlex.join(["gopd", name, self.path, *self.overrides, *more])


@dataclass(frozen=True, slots=True)
class SeenRow:
    """One row: its prompt as each model sees it, by role, and the response that follows all of them."""

    where: str
    route: str | None
    prompts: Mapping[str, list[int]]
    response_ids: list[int]


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much student and teacher agree about the likely next tokens, as means over response tokens.

    `shared`: of the student's top-k tokens those in the teacher's top-k; `sampled`: of the sampled tokens; `mass`: the
    student's probability of the teacher's top-k.
    """

    top_k: int
    tokens: int
    shared: float
    sampled: float
    mass: float


@dataclass(frozen=True, slots=True)
class Contest:
    """A teacher against the reference or the student on the same problems of one domain, paired problem by problem.

    `difference` is the teacher's accuracy minus the other's, with its 95% interval.
    """

    teacher: str
    domain: str
    against: str
    problems: int
    teacher_accuracy: float
    other_accuracy: float
    difference: Estimate


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that checks look at.

    `rollouts` are the student's, graded, for SFT the demonstrations; `own_logprobs` what the trainer says of them, and
    `scores` what teacher and reference say. `again` has the scores of the same rows made in other ways, by name.
    `exact`: the sampler claims the trainer's own numerics. `said`: warnings while the recipe was prepared.
    """

    request: Request
    task: Task
    models: Mapping[str, Description]
    """The student first, then every model that the recipe names, by role."""
    said: Sequence[str]
    device: Device | None
    """None: a GPU of a kind that is not known."""
    devices: int
    prompts: PromptSet
    """The rows of the training data that are looked at."""
    dtype: torch.dtype
    """Of frozen models."""
    exact: bool = True
    rollouts: Sequence[Rollout] = ()
    seen: Sequence[SeenRow] = ()
    own_logprobs: Sequence[Tensor] = ()
    scores: Sequence[Scores | None] = ()
    again: Mapping[str, Sequence[Scores | None]] | None = None
    overlaps: Mapping[str, Overlap] | None = None
    contests: Sequence[Contest] = ()

    @property
    def recipe(self) -> AnyRecipe:
        """The recipe."""
        return self.request.recipe

    def rows_of(self, route: str) -> list[int]:
        """The rollouts that a teacher scores."""
        return [i for i, rollout in enumerate(self.rollouts) if rollout.prompt.route == route]
