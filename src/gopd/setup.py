"""From a recipe to everything loaded and checked: what cannot work is refused here, before any work starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gopd import views
from gopd.errors import BadInput
from gopd.learner import Learner
from gopd.model import LanguageModel, load_model
from gopd.order import PromptOrder
from gopd.recipe import AnyRecipe, OpdRecipe, SampledRecipe
from gopd.rollouts import PromptSet, check_context, check_sandbox, demonstrations, prompt_set
from gopd.sampler import Sampler
from gopd.sampler.torch import TorchSampler
from gopd.scorer import Scorer, Seat
from gopd.types import Rollout


@dataclass
class Roles:
    """The actors and the data of one run.

    `scorer` is None where no frozen model takes part: SFT, and GRPO without a KL. `demonstrations` are set for SFT.
    """

    student: LanguageModel
    sampler: Sampler
    scorer: Scorer | None
    learner: Learner
    data: PromptSet
    demonstrations: list[Rollout] | None
    validation: PromptSet | None
    order: PromptOrder
    total_steps: int


def prepare(recipe: AnyRecipe) -> Roles:
    """Loads models and data and checks that they fit together; raises BadInput when they do not."""
    device, dtype = device_of(recipe)
    narrow = dtype == torch.bfloat16
    student = load_model(recipe.student, "student", device=device, dtype=torch.float32, narrow=narrow)
    if recipe.student.lora is not None:
        student.add_lora(recipe.student.lora, recipe.train.seed)
    routes = (*recipe.teachers, *recipe.reward_routes) if isinstance(recipe, OpdRecipe) else ()
    data, validation = _prompts(recipe, student, routes)
    scorer = None
    if isinstance(recipe, SampledRecipe):
        _check_rewards(recipe, data)
        if isinstance(recipe, OpdRecipe) or recipe.grpo.kl_weight > 0:
            scorer = Scorer(recipe, student, device=device, dtype=dtype)
            _check_seats(scorer, recipe, data, validation)
    order = PromptOrder(len(data), recipe.train.prompts_per_step, recipe.data.shuffle, recipe.train.seed)
    steps = recipe.train.steps or order.steps(recipe.train.epochs or 1)
    limit = recipe.data.max_response_tokens
    return Roles(
        student=student,
        sampler=TorchSampler(
            student, recipe.sampler.slots if isinstance(recipe, SampledRecipe) else VALIDATION_SLOTS
        ),
        scorer=scorer,
        learner=_learner(recipe, student, scorer, steps * recipe.train.mini_batches * recipe.train.passes),
        data=data,
        demonstrations=demonstrations(data, student, limit) if recipe.method == "sft" else None,
        validation=validation,
        order=order,
        total_steps=steps,
    )


VALIDATION_SLOTS = 64
"""Rows decoded side by side where the recipe has no sampler section, and for teachers."""


def _prompts(
    recipe: AnyRecipe, student: LanguageModel, routes: Sequence[str]
) -> tuple[PromptSet, PromptSet | None]:
    limit, view = recipe.data.max_prompt_tokens, recipe.student.view
    data = prompt_set(
        recipe.data,
        student.tokenizer,
        student.name,
        view,
        routes=routes,
        limit=limit,
        overlong=recipe.data.overlong,
        need_response=recipe.method == "sft",
    )
    check_context(student, data.ids, recipe.data.max_response_tokens)
    check_sandbox(data.prompts, allow_unsandboxed=recipe.train.allow_unsandboxed)
    if recipe.validation is None:
        return data, None
    validation = prompt_set(
        recipe.validation, student.tokenizer, student.name, view, routes=routes, limit=limit
    )
    check_context(student, validation.ids, recipe.validation_response_tokens)
    check_sandbox(validation.prompts, allow_unsandboxed=recipe.train.allow_unsandboxed)
    return data, validation


def _check_rewards(recipe: SampledRecipe, data: PromptSet) -> None:
    """Rows that are to learn from rewards must have a verifier."""
    without = [p for p in data.prompts if p.verifier == "none" and recipe.learns_from_reward(p.route)]
    if without:
        shown = ", ".join(f"{p.where} ({p.data_source})" for p in without[:3])
        more = f" and {len(without) - 3} more rows" if len(without) > 3 else ""
        raise BadInput(
            f"{shown}{more}: no verifier, but the reward is what these rows are to learn from; set data.verifier to "
            "math or code, give a data_source that one belongs to, or leave the rows out"
        )


def _check_seats(
    scorer: Scorer, recipe: SampledRecipe, data: PromptSet, validation: PromptSet | None
) -> None:
    """One vocabulary for all; every view renders every row, and every model has room for it."""
    seats: dict[str, Seat] = {}
    for name, route in scorer.routes.items():
        seats["reference" if name is None else f"teacher {name}"] = route.teacher
        if route.reference is not None:
            seats[f"reference of {name}"] = route.reference
    models = {"student": scorer.student} | {name: seat.model for name, seat in seats.items()}
    views.check_same_vocabulary({name: model.tokenizer for name, model in models.items()})
    logits = len(scorer.student.head_VD)
    for name, model in models.items():
        if len(model.head_VD) != logits:
            raise BadInput(
                f"{name} has {len(model.head_VD)} logits, the student {logits}; "
                "distillation compares whole distributions, so choose models with one vocabulary size"
            )
    sets = [(data, recipe.data.max_response_tokens)]
    if validation is not None:
        sets.append((validation, recipe.validation_response_tokens))
    for name, seat in seats.items():
        views.check_view(seat.view, seat.model.tokenizer, name)
        for prompts, limit in sets:
            own = seat.view == recipe.student.view
            ids = prompts.ids if own else views.render(seat.view, prompts.prompts, seat.model.tokenizer)
            check_context(seat.model, ids, limit)


def _learner(recipe: AnyRecipe, student: LanguageModel, scorer: Scorer | None, updates: int) -> Learner:
    if not isinstance(recipe, SampledRecipe):
        return Learner(recipe, student, total_steps=updates, aggregation=recipe.aggregation)
    objective = recipe.objective if isinstance(recipe, OpdRecipe) else None
    return Learner(
        recipe,
        student,
        total_steps=updates,
        aggregation=(objective or recipe.grpo).aggregation,
        objective=objective,
        correction=recipe.correction,
        temperature=recipe.sampler.temperature,
        heads=None if scorer is None else scorer.heads,
    )


def device_of(recipe: AnyRecipe) -> tuple[torch.device, torch.dtype]:
    """Where models live, and the dtype of the frozen ones."""
    return choose_device(recipe.train.device, recipe.train.compute_dtype)


def choose_device(wanted: str, compute_dtype: str) -> tuple[torch.device, torch.dtype]:
    """As `train.device` and `train.compute_dtype` say; auto: a GPU, and bfloat16 on it, where there is one."""
    cuda = torch.cuda.is_available()
    if wanted == "cuda" and not cuda:
        raise BadInput("train.device is cuda, but PyTorch finds no GPU; use auto or cpu")
    device = torch.device("cuda" if wanted != "cpu" and cuda else "cpu")
    narrow = compute_dtype == "bfloat16" or (compute_dtype == "auto" and device.type == "cuda")
    return device, torch.bfloat16 if narrow else torch.float32
