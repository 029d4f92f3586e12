"""From a recipe to everything checked and loaded: what cannot work is refused here, before any work starts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from gopd import views
from gopd.errors import BadInput
from gopd.learner import Heads, Learner
from gopd.model import Description, LanguageModel, describe, load_model
from gopd.order import PromptOrder
from gopd.profile import Profiler
from gopd.recipe import AnyRecipe, OpdRecipe, Recipe, SampledRecipe
from gopd.remote import Server
from gopd.roles import Roles
from gopd.rollouts import PromptSet, check_context, check_sandbox, demonstrations, prompt_set
from gopd.sampler import Sampler
from gopd.sampler.torch import TorchSampler
from gopd.sampler.vllm import VllmSampler
from gopd.sampler.vllm_setup import check_vllm
from gopd.scorer import Scorer
from gopd.sections import ModelSpec, SamplerSection, View, VllmSection
from gopd.sharding import ALONE, Ranks
from gopd.types import Rollout

log = logging.getLogger(__name__)

VALIDATION_SLOTS = 64
"""Rows decoded side by side where the recipe has no sampler section, and for teachers."""


Machine = tuple[torch.device, torch.dtype]
"""Where models live, and the dtype of the frozen ones."""


@dataclass(frozen=True)
class Task:
    """What a run works on, found fit for its models without loading their weights.

    `demonstrations` are set for SFT. `seen_by` has the validation prompts as each teacher sees them, where teachers are
    measured too.
    """

    tokenizer: PreTrainedTokenizerBase
    data: PromptSet
    demonstrations: list[Rollout] | None
    validation: PromptSet | None
    seen_by: dict[str, PromptSet]
    order: PromptOrder
    total_steps: int
    longest: int
    """Tokens of the longest prompt with a full response."""

    def updates(self, recipe: AnyRecipe) -> int:
        """Optimizer steps of the whole run."""
        return self.total_steps * recipe.train.mini_batches * recipe.train.passes


def prepare(recipe: AnyRecipe) -> Task:
    """Reads data, tokenizers and configurations, and checks that they fit together; raises BadInput otherwise."""
    student = describe(recipe.student, "student")
    routes = (*recipe.teachers, *recipe.reward_routes) if isinstance(recipe, OpdRecipe) else ()
    sets = _prompts(recipe, student, routes)
    (data, limit), validation = sets[0], sets[1][0] if len(sets) > 1 else None
    described: dict[str, Description] = {}
    if isinstance(recipe, SampledRecipe):
        _check_rewards(recipe, data)
        frozen = recipe.frozen_models()
        described |= {role: describe(spec, role) for role, spec in frozen.items()}
        _check_servers(recipe, described)
        views_of = {role: spec.view or recipe.student.view for role, spec in frozen.items()}
        _check_seats(
            recipe, student, {role: (described[role], view) for role, view in views_of.items()}, sets
        )
    seen_by = {}
    if recipe.validation is not None and recipe.validation.teachers and isinstance(recipe, OpdRecipe):
        assert validation is not None
        for name in recipe.teachers:
            view, tokenizer = recipe.teacher_view(name), described[f"teacher {name}"].tokenizer
            ids = views.render(view, validation.prompts, tokenizer)
            seen_by[name] = PromptSet(validation.prompts, ids)
    order = PromptOrder(len(data), recipe.train.prompts_per_step, recipe.data.shuffle, recipe.train.seed)
    return Task(
        tokenizer=student.tokenizer,
        data=data,
        demonstrations=demonstrations(data, student.tokenizer, student.name, limit)
        if recipe.method == "sft"
        else None,
        validation=validation,
        seen_by=seen_by,
        order=order,
        total_steps=recipe.train.steps or order.steps(recipe.train.epochs or 1),
        longest=max(max(map(len, prompts.ids)) + longest for prompts, longest in sets),
    )


Sets = Sequence[tuple[PromptSet, int]]
"""Prompts with the response limit that goes with them: training, then validation if there is any."""


def _prompts(recipe: AnyRecipe, student: Description, routes: Sequence[str]) -> Sets:
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
    sets = [(data, recipe.data.max_response_tokens)]
    if recipe.validation is not None:
        validation = prompt_set(
            recipe.validation, student.tokenizer, student.name, view, routes=routes, limit=limit
        )
        sets.append((validation, recipe.validation_response_tokens))
    for prompts, longest in sets:
        check_context(student, prompts.ids, longest)
        check_sandbox(prompts.prompts, allow_unsandboxed=recipe.train.allow_unsandboxed)
    return sets


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


def _check_servers(recipe: SampledRecipe, described: dict[str, Description]) -> None:
    """Tries out the servers that score; their models then have no more room than their servers give them."""
    models, servers = recipe.frozen_models(), recipe.servers()
    for role, section in servers.items():
        described[role] = Server(section, models[role].model, role).check(described[role])
    if servers:
        log.warning(
            "%s: scored by servers, which give no whole distributions; the exact KL to the target in validation leaves "
            "out their rows, and where the reward scale is not 1 so does its estimate in training",
            ", ".join(servers),
        )


def _check_seats(
    recipe: AnyRecipe, student: Description, seats: dict[str, tuple[Description, View]], sets: Sets
) -> None:
    """One vocabulary for all; every view renders every row, and every model has room for it."""
    models = {"student": student} | {role: model for role, (model, _) in seats.items()}
    views.check_same_vocabulary({role: model.tokenizer for role, model in models.items()})
    for role, model in models.items():
        if model.logits != student.logits:
            raise BadInput(
                f"{role} has {model.logits} logits, the student {student.logits}; "
                "distillation compares whole distributions, so choose models with one vocabulary size"
            )
    for role, (model, view) in seats.items():
        views.check_view(view, model.tokenizer, role)
        for prompts, limit in sets:
            own = view == recipe.student.view
            check_context(
                model, prompts.ids if own else views.render(view, prompts.prompts, model.tokenizer), limit
            )


class LocalRoles(Roles):
    """All roles in this process; the embedded sampler decodes with the learner's own weights."""

    learner: Learner
    scorer: Scorer | None

    def __init__(self, recipe: AnyRecipe, task: Task) -> None:
        if recipe.train.max_staleness:
            raise BadInput(
                "train.max_staleness lets sampling and training overlap, which needs --cluster; set it to 0"
            )
        device, dtype = device_of(recipe)
        if isinstance(recipe, SampledRecipe) and recipe.sampler.engine == "vllm":
            check_vllm(recipe.student, recipe.sampler.vllm, device)
        student = load_student(recipe, device, dtype)
        self._version = self._adopted = 0
        self.scorer = None
        if isinstance(recipe, SampledRecipe) and recipe.scored:
            self.scorer = Scorer(recipe, student, device=device, dtype=dtype)
        self.sampler: Sampler = TorchSampler(student, slots_of(recipe))
        self.apart = False
        if isinstance(recipe, SampledRecipe) and recipe.sampler.engine == "vllm":
            self.sampler, self.apart = student_vllm(recipe, task.longest), True
        heads = None if self.scorer is None else self.scorer.heads
        self.learner = make_learner(recipe, student, heads, task.updates(recipe))
        if recipe.tracking.profile:
            self.profiler = Profiler(recipe, student, self.scorer)

    def publish(self, version: int) -> None:
        """The learner's weights are there for the sampler."""
        self._version = version

    def adopt(self) -> int:
        """Gives the sampler the learner's weights."""
        if self.apart and self._adopted != self._version:
            self.sampler.update(self.learner.weights(), self._version)
        self._adopted = self._version
        return self._adopted

    def offer(self) -> None:
        """Nothing is sampled while the learner trains."""

    def call_off(self) -> None:
        """No other thread uses them."""

    def check_folder(self, folder: Path) -> None:
        """It is there."""

    def close(self) -> None:
        """Ends the engine, where it has processes of its own."""
        if isinstance(self.sampler, VllmSampler):
            self.sampler.close()


@contextmanager
def answering(
    spec: ModelSpec, role: str, section: SamplerSection, *, longest: int, machine: Machine, seed: int
) -> Iterator[Sampler]:
    """The engine of a section with a frozen model, for rows of at most `longest` tokens; ended with the block."""
    device, dtype = machine
    if section.engine == "torch":
        yield TorchSampler(load_model(spec, role, device=device, dtype=dtype).freeze(), section.slots)
        return
    with closing(
        vllm_sampler(spec, role, section.vllm, longest=longest, machine=machine, seed=seed)
    ) as sampler:
        yield sampler


def vllm_sampler(
    spec: ModelSpec, role: str, section: VllmSection, *, longest: int, machine: Machine, seed: int
) -> VllmSampler:
    """A vLLM engine with a model's weights, for rows of at most `longest` tokens; to be closed."""
    device, dtype = machine
    eos_ids = describe(spec, role).eos_ids
    return VllmSampler(spec, eos_ids, section, max_tokens=longest, device=device, dtype=dtype, seed=seed)


def student_vllm(recipe: SampledRecipe, longest: int) -> VllmSampler:
    """A vLLM engine with the student's initial weights."""
    section, machine = recipe.sampler.vllm, device_of(recipe)
    return vllm_sampler(
        recipe.student, "student", section, longest=longest, machine=machine, seed=recipe.train.seed
    )


def load_student(recipe: AnyRecipe, device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """The model that is trained, with its adapters; float32 weights whatever it computes in."""
    narrow = dtype == torch.bfloat16
    student = load_model(recipe.student, "student", device=device, dtype=torch.float32, narrow=narrow)
    if recipe.student.lora is not None:
        student.add_lora(recipe.student.lora, recipe.train.seed)
    return student


def slots_of(recipe: AnyRecipe) -> int:
    """Rows that the embedded sampler decodes side by side."""
    return recipe.sampler.slots if isinstance(recipe, SampledRecipe) else VALIDATION_SLOTS


def make_learner(
    recipe: AnyRecipe, student: LanguageModel, heads: Heads | None, updates: int, ranks: Ranks = ALONE
) -> Learner:
    """The learner as the recipe's method wants it; `updates` is the number of optimizer steps of the whole run."""
    if not isinstance(recipe, SampledRecipe):
        return Learner(recipe, student, total_steps=updates, aggregation=recipe.aggregation, ranks=ranks)
    objective = recipe.objective if isinstance(recipe, OpdRecipe) else None
    return Learner(
        recipe,
        student,
        total_steps=updates,
        aggregation=(objective or recipe.grpo).aggregation,
        objective=objective,
        correction=recipe.correction,
        temperature=recipe.sampler.temperature,
        heads=heads,
        ranks=ranks,
    )


def device_of(recipe: Recipe) -> Machine:
    """Where models live, and the dtype of the frozen ones."""
    return choose_device(recipe.train.device, recipe.train.compute_dtype)


def choose_device(wanted: str, compute_dtype: str) -> Machine:
    """As `train.device` and `train.compute_dtype` say; auto: a GPU, and bfloat16 on it, where there is one."""
    cuda = torch.cuda.is_available()
    if wanted == "cuda" and not cuda:
        raise BadInput("train.device is cuda, but PyTorch finds no GPU; use auto or cpu")
    device = torch.device("cuda" if wanted != "cpu" and cuda else "cpu")
    narrow = compute_dtype == "bfloat16" or (compute_dtype == "auto" and device.type == "cuda")
    return device, torch.bfloat16 if narrow else torch.float32
