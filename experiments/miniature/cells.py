"""The cells of the experiment: what is trained or merged for each figure of the paper, before any seed.

A cell makes a model folder from a seed; `run.py` measures it on the cell's domains and keeps the figures.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gopd.console import Display
from gopd.generate import generate
from gopd.loop import train
from gopd.merge import merge
from gopd.recipe_file import parse_recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tiny"))
from problems import TEACHER_OF, Domain

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
EXOPD = 1.25
PAIR: tuple[Domain, ...] = ("arithmetic", "lists")
FOUR: tuple[Domain, ...] = tuple(TEACHER_OF)
MATH: tuple[Domain, ...] = ("arithmetic",)
PROMPT_TOKENS, RESPONSE_TOKENS = 64, 48


@dataclass(frozen=True)
class Size:
    """How much is done. Prompts are per domain and step."""

    prompts: int = 64
    steps: int = 50
    strong_steps: int = 100
    lr: float = 5e-4
    problems: int = 1000
    seeds: int = 5


@dataclass(frozen=True)
class Place:
    """Where one run of a cell works: a scratch folder, the training prompts, and the seed."""

    folder: Path
    data: Path
    size: Size
    seed: int
    display: Display


Make = Callable[[Place], str]
"""Trains or merges; returns the model's folder or name."""


@dataclass(frozen=True)
class Cell:
    """One model of the experiment. It is compared with `teacher` (None: the domain's own) and `base`.

    Without `make` it is no model: the variance of gradients at the base is measured.
    """

    name: str
    domains: tuple[Domain, ...]
    make: Make | None
    teacher: str | None = None
    base: str = "builtin:base"


def distillation(
    domains: Sequence[Domain],
    scale: float,
    place: Place,
    *,
    saturated: bool = False,
    strong: bool = False,
    reference: str | None = None,
    **objective: Any,
) -> dict[str, Any]:
    """Recipe of on-policy distillation from each domain's teacher into the base."""
    tree = _recipe(place, domains, place.size.strong_steps if strong else place.size.steps)
    tree |= {"method": "opd", "sampler": {"slots": 128}, "teachers": _teachers(domains, saturated, strong)}
    tree["objective"] = {"reward_scale": scale, **objective}
    if reference is not None:
        tree["reference"] = {"model": reference}
    return tree


def distilled(domains: Sequence[Domain], scale: float, place: Place, **options: Any) -> str:
    """On-policy distillation from each domain's teacher into the base."""
    return _trained(distillation(domains, scale, place, **options), place)


def _teachers(domains: Sequence[Domain], saturated: bool, strong: bool) -> dict[str, dict[str, str]]:
    """By route."""
    before, after = "large-" * strong, "-saturated" * saturated
    return {TEACHER_OF[d]: {"model": f"builtin:{before}{TEACHER_OF[d]}{after}"} for d in domains}


def demonstrated(domains: Sequence[Domain], place: Place, *, strong: bool = False) -> str:
    """Supervised fine-tuning on one response of the domain's teacher to each of the same prompts."""
    tree = _recipe(place, domains, place.size.strong_steps if strong else place.size.steps)
    teachers = _teachers(domains, saturated=False, strong=strong)
    asked = parse_recipe(tree | {"method": "opd", "teachers": teachers, "sampler": {"slots": 128}})
    responses = generate(asked, place.folder / "responses", display=place.display)
    tree["data"] = {k: v for k, v in tree["data"].items() if k != "keep_sources"} | {
        "files": [str(responses)]
    }
    # Weighed as in distillation: every response counts the same.
    return _trained(tree | {"method": "sft", "aggregation": "seq-mean-token-mean"}, place)


def rewarded(domain: Domain, place: Place) -> str:
    """More reinforcement learning for a teacher, as it was made, for as many steps as distillation takes."""
    tree = _recipe(place, (domain,), place.size.steps, student=f"builtin:{TEACHER_OF[domain]}")
    tree["optim"] = {"lr": 2e-4, "weight_decay": 0.0}
    tree["data"]["verifier"] = "auto"
    tree |= {"method": "grpo", "sampler": {"slots": 128, "samples_per_prompt": 8}}
    return _trained(tree, place)


def merged(domains: Sequence[Domain], alpha: float, place: Place) -> str:
    """The teachers' average, extrapolated from the base by alpha."""
    folder = place.folder / "merged"
    models = [f"builtin:{TEACHER_OF[d]}" for d in domains]
    merge(models, folder, base="builtin:base" if alpha else None, alpha=alpha)
    return str(folder)


def _recipe(
    place: Place, domains: Sequence[Domain], steps: int, student: str = "builtin:base"
) -> dict[str, Any]:
    return {
        "student": {"model": student},
        "data": {
            "files": [str(place.data / f"train-{d}-{steps}.parquet") for d in domains],
            "keep_sources": [f"tiny/{d}" for d in domains],
            "max_prompt_tokens": PROMPT_TOKENS,
            "max_response_tokens": RESPONSE_TOKENS,
            # Rewards are only logged; programs would take longer to grade than to learn from.
            "verifier": "auto" if tuple(domains) == MATH else "none",
        },
        "optim": {"lr": place.size.lr, "schedule": "linear", "weight_decay": 0.0},
        "train": {
            "steps": steps,
            "prompts_per_step": place.size.prompts * len(domains),
            "seed": place.seed,
        },
        "checkpoint": {"every": 0},
        "tracking": {"folder": str(place.folder), "project": "miniature", "name": "run", "rollouts_every": 0},
    }


def _trained(tree: Mapping[str, Any], place: Place) -> str:
    return str(train(parse_recipe(tree), display=place.display) / "student")


def _shipped(name: str, place: Place) -> str:
    return f"builtin:{name}"


def _shipped_cells() -> Iterator[Cell]:
    yield Cell("models/base", FOUR, partial(_shipped, "base"))
    for domains in (PAIR, FOUR[2:]):
        for domain in domains:
            yield Cell(f"models/{TEACHER_OF[domain]}", domains, partial(_shipped, TEACHER_OF[domain]))
    for domain in PAIR:
        name = f"{TEACHER_OF[domain]}-saturated"
        yield Cell(f"models/{name}", PAIR, partial(_shipped, name))
    for name in ("large-base", "large-math"):
        yield Cell(
            f"models/{name}", MATH, partial(_shipped, name), "builtin:large-math", "builtin:large-base"
        )


def _single_cells() -> Iterator[Cell]:
    """Table 1, Figs 2 to 4, and the estimators."""
    for domain in PAIR:
        name = TEACHER_OF[domain]
        for scale in SCALES:
            yield Cell(f"single/{name}/{scale:g}", (domain,), partial(distilled, (domain,), scale))
        yield Cell(f"single/{name}/more-rl", (domain,), partial(rewarded, domain))
    for name, objective in ESTIMATORS.items():
        yield Cell(f"estimators/{name}", MATH, partial(distilled, MATH, EXOPD, **objective))
    yield Cell("estimators/variance", MATH, None)


def _merging_cells() -> Iterator[Cell]:
    """Table 2 with two teachers and with four, and Table 8."""
    for name, domains in (("two", PAIR), ("four", FOUR)):
        yield Cell(f"{name}/sft", domains, partial(demonstrated, domains))
        yield Cell(f"{name}/opd", domains, partial(distilled, domains, 1.0))
        yield Cell(f"{name}/exopd", domains, partial(distilled, domains, EXOPD))
        for alpha in (0.0, 0.25, 0.5):
            method = f"expo-{alpha:g}" if alpha else "average"
            yield Cell(f"{name}/{method}", domains, partial(merged, domains, alpha))
    for method, scale in (("opd", 1.0), ("exopd", EXOPD)):
        yield Cell(f"saturated/{method}", PAIR, partial(distilled, PAIR, scale, saturated=True))


def _strong_cells() -> Iterator[Cell]:
    """Table 3 and Fig 6."""
    made: dict[str, Make] = {
        "sft": partial(demonstrated, MATH, strong=True),
        "opd": partial(distilled, MATH, 1.0, strong=True),
        "exopd": partial(distilled, MATH, EXOPD, strong=True),
        "exopd-corrected": partial(distilled, MATH, EXOPD, strong=True, reference="builtin:large-base"),
    }
    for name, make in made.items():
        yield Cell(f"strong/{name}", MATH, make, "builtin:large-math")


ESTIMATORS: dict[str, dict[str, Any]] = {
    "control-variate": {"control_variate": True},
    "topk": {"estimator": "topk", "top_k": 16},
    "full": {"estimator": "full"},
}
"""Beside `sampled`, which all other cells use."""
CELLS = (*_shipped_cells(), *_single_cells(), *_merging_cells(), *_strong_cells())
