"""What a step of a recipe asks for: models, rows and their assumed lengths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gopd.errors import BadInput
from gopd.methods import opd
from gopd.plan.lengths import response_lengths
from gopd.plan.sizes import ModelSizes, find_sizes
from gopd.recipe import AnyRecipe, OpdRecipe, SampledRecipe

SPREAD = 1.0
"""Assumed standard deviation of the logarithm of response lengths: the longest tenth takes a third of the tokens."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What no recipe states. None: a quarter of the response limit, an eighth of the prompt limit."""

    mean_prompt_tokens: int | None = None
    mean_response_tokens: int | None = None
    spread: float = SPREAD


@dataclass(frozen=True, slots=True)
class Seat:
    """A teacher and its reference, and the share of the rows that they score."""

    name: str
    teacher: ModelSizes
    reference: ModelSizes | None
    share: float

    @property
    def models(self) -> list[ModelSizes]:
        """What a scorer of this teacher holds."""
        found = [self.teacher, self.reference]
        return [m for m in found if m is not None]


@dataclass(frozen=True)
class Workload:
    """One step. Every prompt is taken to have the mean length; `responses` has one length per row."""

    student: ModelSizes
    seats: list[Seat]
    sampled: bool
    """Whether the student samples (not with SFT)."""
    hidden: bool
    """Whether scorers send hidden states, and the learner applies their heads."""
    prompt: int
    responses: list[int]
    samples: int
    """Rows of each prompt."""
    longest: int
    """Tokens of the longest row that the recipe allows."""
    updates: int
    """Optimizer steps per step."""
    passes: int
    budget: int
    """Packed tokens of a micro-batch."""
    checkpointing: bool
    staleness: int

    @property
    def tokens(self) -> int:
        """Of one step, prompts and responses."""
        return len(self.responses) * self.prompt + sum(self.responses)

    @property
    def mean_response(self) -> float:
        """Tokens."""
        return sum(self.responses) / len(self.responses)


def workload_of(
    recipe: AnyRecipe, assumed: Assumptions, like: Mapping[str, str], element: int, *, factor: int = 1
) -> Workload:
    """The step of a recipe; `factor` makes its batch so many times larger.

    Raises BadInput when a model's configuration is not found, and for what is not counted (LoRA, mixtures of experts
    as students).
    """
    if recipe.student.lora is not None:
        raise BadInput("gopd plan does not count adapters (student.lora); plan the recipe without them")
    student = find_sizes(recipe.student, "student", like, element)
    if student.experts is not None:
        raise BadInput(
            f"student: {student.name} is a mixture of experts; gopd plan counts those as teachers only"
        )
    prompt, response = _means(recipe, assumed)
    samples = recipe.sampler.samples_per_prompt if isinstance(recipe, SampledRecipe) else 1
    rows = factor * recipe.train.prompts_per_step * samples
    return Workload(
        student=student,
        seats=_seats(recipe, student, like, element),
        sampled=isinstance(recipe, SampledRecipe),
        hidden=isinstance(recipe, OpdRecipe) and opd.needs_vocabulary(recipe.objective),
        prompt=prompt,
        responses=response_lengths(rows, response, recipe.data.max_response_tokens, assumed.spread),
        samples=samples,
        longest=recipe.data.max_prompt_tokens + recipe.data.max_response_tokens,
        updates=recipe.train.mini_batches,
        passes=recipe.train.passes,
        budget=recipe.train.tokens_per_micro_batch,
        checkpointing=recipe.student.gradient_checkpointing,
        staleness=recipe.train.max_staleness,
    )


def _means(recipe: AnyRecipe, assumed: Assumptions) -> tuple[int, int]:
    """Mean prompt and response tokens; BadInput where the recipe does not allow them."""
    data = recipe.data
    given = (assumed.mean_prompt_tokens, assumed.mean_response_tokens)
    limits = (data.max_prompt_tokens, data.max_response_tokens)
    for name, mean, limit in zip(("prompt", "response"), given, limits, strict=True):
        if mean is not None and not 1 <= mean <= limit:
            raise BadInput(
                f"--mean-{name}-tokens {mean}: the recipe allows 1 to {limit} (data.max_{name}_tokens)"
            )
    prompt, response = given
    return prompt or max(1, limits[0] // 8), response or max(1, limits[1] // 4)


def _seats(recipe: AnyRecipe, student: ModelSizes, like: Mapping[str, str], element: int) -> list[Seat]:
    """Who scores; every teacher is taken to have equally many prompts."""
    if not isinstance(recipe, SampledRecipe):
        return []
    if not isinstance(recipe, OpdRecipe):
        if recipe.grpo.kl_weight == 0:
            return []
        own = recipe.reference
        only = student if own is None else find_sizes(own, "reference", like, element)
        return [Seat("reference", only, None, 1.0)]
    share = 1 / (len(recipe.teachers) + len(recipe.reward_routes))
    seats = []
    for name, spec in recipe.teachers.items():
        teacher, reference = find_sizes(spec, name, like, element), None
        if recipe.reward_scale(name) != 1:
            own = recipe.reference_of(name)
            role = "reference" if spec.reference is None else f"{name}.reference"
            reference = student if own is None else find_sizes(own, role, like, element)
        seats.append(Seat(name, teacher, reference, share))
    return seats
