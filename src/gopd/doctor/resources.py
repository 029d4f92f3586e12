"""Will it fit, and how long will it take? What `gopd plan` says, for the machine at hand and the lengths seen."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean, pstdev

import torch

from gopd.doctor.evidence import Evidence
from gopd.doctor.finding import Finding, unmeasured
from gopd.errors import BadInput
from gopd.plan.devices import GPUS, Device, this_cpu
from gopd.plan.layout import check_layout, layout_of
from gopd.plan.propose import assess
from gopd.plan.sizes import find_sizes
from gopd.plan.workload import Assumptions, workload_of
from gopd.recipe import AnyRecipe, SampledRecipe
from gopd.sections import ModelSpec
from gopd.setup import device_of

CHECK = "resources"


def devices_here(recipe: AnyRecipe) -> tuple[Device | None, int]:
    """The devices that `train.device` means, and how many; None for GPUs of a kind that `gopd plan` does not know."""
    device, _ = device_of(recipe)
    if device.type == "cpu":
        return this_cpu(), 1
    name = torch.cuda.get_device_name(device).lower()
    memory = float(torch.cuda.get_device_properties(device).total_memory)
    kinds = [replace(gpu, memory=memory) for gpu in GPUS.values() if gpu.name.split("-")[0] in name]
    return kinds[0] if kinds else None, torch.cuda.device_count()


def weights_too_large(recipe: AnyRecipe, device: Device | None) -> Finding | None:
    """A stop where the weights alone are more than the device holds, so that the doctor must not load them.

    Nothing where sizes cannot be told; then it is tried.
    """
    if device is None:
        return None
    try:
        needed = _weight_bytes(recipe, device.element)
    except BadInput:
        return None
    if needed <= device.usable:
        return None
    return Finding(
        CHECK,
        "stop",
        f"the weights alone take {needed / 1e9:.3g} GB, and {device.name} has {device.usable / 1e9:.3g} GB for models; "
        "nothing was loaded",
        "set scoring.memory_gb so that teachers take turns, or run this where there is more memory; for a cluster: "
        "gopd plan RECIPE --gpus N --gpu NAME",
        figures={"weight_bytes": needed, "usable_bytes": device.usable},
    )


def _weight_bytes(recipe: AnyRecipe, element: int) -> float:
    """Of the student in float32 and every frozen model that is scored here, each once."""
    student = 4.0 * find_sizes(recipe.student, "student", {}, element).parameters
    if not isinstance(recipe, SampledRecipe) or not recipe.scored:
        return student
    specs: dict[str, ModelSpec] = {
        spec.model: spec for spec in recipe.frozen_models().values() if spec.server is None
    }
    frozen = sum(element * float(find_sizes(s, s.model, {}, element).parameters) for s in specs.values())
    limit = recipe.scoring.memory_gb
    return student + (frozen if limit is None else min(frozen, limit * 1e9))


def run_fits(evidence: Evidence) -> Finding:
    """Memory by role and time of a step, with the lengths of the sampled rows."""
    recipe, device = evidence.recipe, evidence.device
    if device is None:
        return unmeasured(CHECK, "GPUs of a kind that is not known; gopd plan RECIPE --gpus N --gpu NAME")
    stated = device.name != "cpu" and "cluster" in recipe.model_fields_set
    try:
        work = workload_of(recipe, lengths_seen(evidence), {}, device.element)
        layout = layout_of(recipe, alone=not stated)
        if stated:
            check_layout(layout, work, device, evidence.devices)
    except BadInput as error:
        return unmeasured(CHECK, str(error))
    choice = assess(work, layout, device)
    seconds, steps = choice.timing.seconds, evidence.task.total_steps
    fullest = max(choice.fit.roles, key=lambda role: role.total / role.room)
    measured = (
        f"the {fullest.role} needs {fullest.total / 1e9:.3g} GB of {fullest.room / 1e9:.3g} on {device.name}; about "
        f"{duration(seconds)} a step, {duration(seconds * steps)} for {steps:,} steps without validation (predicted)"
    )
    figures = {
        "bytes": {role.role: role.total for role in choice.fit.roles},
        "room": {role.role: role.room for role in choice.fit.roles},
        "seconds_per_step": seconds,
        "steps": steps,
    }
    if choice.fit.fits:
        return Finding(CHECK, "fine", measured, figures=figures)
    mend = "; ".join(f"{role.role}: {role.advice}" for role in choice.fit.roles if not role.fits)
    return Finding(CHECK, "stop", measured, mend, figures=figures)


def lengths_seen(evidence: Evidence) -> Assumptions:
    """Means of prompts and responses, and the spread of the responses' lengths."""
    prompts = [len(r.prompt_ids) for r in evidence.rollouts]
    responses = [len(r.response_ids) for r in evidence.rollouts]
    return Assumptions(
        round(fmean(prompts)), round(fmean(responses)), pstdev([math.log(length) for length in responses])
    )


def duration(seconds: float) -> str:
    """In the largest fitting unit."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"
