"""`gopd plan`: a recipe's memory and time on a cluster, before it runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from gopd.console import PLAIN_WIDTH
from gopd.errors import EXIT_DONE, EXIT_RUN_FAILED, BadInput
from gopd.plan.devices import Device, gpu, this_cpu
from gopd.plan.layout import check_layout, layout_of
from gopd.plan.propose import Choice, assess, propose, section_yaml
from gopd.plan.show import as_json, models_of, show_assumptions, show_choice
from gopd.plan.workload import Assumptions, Workload, workload_of
from gopd.recipe_file import load_recipe

CPU_NOTE = "memory is what tensors take; what the C library keeps of freed memory comes on top (docs/plan.md)"


def plan_command(options: argparse.Namespace) -> int:
    """Prints the plan; exit code 0 when it fits, 1 when not. Raises BadInput."""
    recipe = load_recipe(options.recipe, options.overrides)
    device, count = _devices(options)
    assumed = Assumptions(options.mean_prompt_tokens, options.mean_response_tokens, options.spread)
    if options.spread < 0:
        raise BadInput(f"--spread {options.spread}: a standard deviation is not negative")
    like = _like(options.like)
    work = workload_of(recipe, assumed, like, device.element)
    _check_like(like, work)
    alone = options.device is not None
    layout = layout_of(recipe, alone=alone)
    stated = alone or "cluster" in recipe.model_fields_set
    if stated:
        check_layout(layout, work, device, count)
    own = assess(work, layout, device) if stated else None
    proposed = None if alone else propose(work, layout, device, count)
    if options.json:
        print(json.dumps(_json(work, device, count, own, proposed), indent=1))
    else:
        _show(work, device, count, own, proposed)
    decisive = own or proposed
    return EXIT_DONE if decisive is not None and decisive.fit.fits else EXIT_RUN_FAILED


def _devices(options: argparse.Namespace) -> tuple[Device, int]:
    if options.device is not None:
        if options.gpus is not None or options.gpu is not None:
            raise BadInput("give either --device cpu, for this machine alone, or --gpus N --gpu NAME")
        device, count = this_cpu(), 1
    elif options.gpus is None or options.gpu is None:
        raise BadInput(
            "say what to plan for: --gpus N --gpu NAME (e.g. --gpus 8 --gpu h100-80gb), or --device cpu"
        )
    elif options.gpus < 1:
        raise BadInput(f"--gpus {options.gpus}: at least 1")
    else:
        device, count = gpu(options.gpu), options.gpus
    return device.reaching(options.update_share, options.decode_share), count


def _like(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        role, sign, name = pair.partition("=")
        if not sign or not role or not name:
            raise BadInput(f"--like {pair}: expected ROLE=NAME, e.g. math=Qwen/Qwen3-4B")
        found[role] = name
    return found


def _check_like(like: dict[str, str], work: Workload) -> None:
    roles = {"student", "reference"}
    roles |= {role for seat in work.seats for role in (seat.name, f"{seat.name}.reference")}
    if unknown := sorted(like.keys() - roles):
        raise BadInput(f"--like {unknown[0]}: no such role; roles are {', '.join(sorted(roles))}")


def _show(work: Workload, device: Device, count: int, own: Choice | None, proposed: Choice | None) -> None:
    console = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    alone = own is not None and own.layout.alone
    show_assumptions(console, work, device, count, [CPU_NOTE] if alone else [])
    if own is not None:
        show_choice(console, "The recipe's cluster" if not alone else "gopd train", own, device)
    if alone:
        return
    if proposed is None:
        console.print(
            f"\n[bold]No cluster section fits {count} × {device.name}[/bold]: use more devices or larger ones, set "
            "student.gradient_checkpointing, or lower data.max_response_tokens"
        )
        return
    show_choice(console, f"Proposed for {count} × {device.name}", proposed, device)
    console.print("\nto paste into the recipe:\n")
    console.print(section_yaml(proposed, work.budget), markup=False)


def _json(
    work: Workload, device: Device, count: int, own: Choice | None, proposed: Choice | None
) -> dict[str, Any]:
    decisive = own or proposed
    return {
        "kind": "prediction",
        "fits": decisive is not None and decisive.fit.fits,
        "device": asdict(device),
        "devices": count,
        "models": {role: asdict(model) for role, model in models_of(work).items()},
        "rows": len(work.responses),
        "mean_prompt_tokens": work.prompt,
        "mean_response_tokens": work.mean_response,
        "longest_response_tokens": max(work.responses),
        "own": None if own is None else as_json(own),
        "proposed": None
        if proposed is None
        else as_json(proposed) | {"yaml": section_yaml(proposed, work.budget)},
    }
