"""How a step's cost grows: response length, batch, number of teachers."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from statistics import median
from typing import Any

import models
import yaml
from step import SPARE, WORK, arithmetic, gopd_command, gopd_recipe, interleaved, write_rows

PHASES = ("sample", "score", "update")
ROUNDS = 2
TEACHER_ROUNDS = 5


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    tiny = models.endless("tiny", models.tiny())
    lengths = (16, 64) if quick else (64, 256, 1024, 4096)
    batches = (16, 64) if quick else (16, 64, 256)
    return {
        "response length": {n: steps(tiny, 2, n) for n in lengths},
        "batch": {n: steps(tiny, n, 32) for n in batches},
        "teachers": teachers(tiny, (1, 4) if quick else (1, 2, 4, 8), 64, 32),
    }


def steps(student: Path, batch: int, tokens: int) -> Any:
    """Median seconds per phase."""
    return medians({"step": command(student, 1, (batch, tokens, ROUNDS))}, ROUNDS)["step"]


def teachers(student: Path, counts: tuple[int, ...], batch: int, tokens: int) -> dict[str, Any]:
    """The same rows, spread over so many teachers; their steps in turn."""
    commands = {str(count): command(student, count, (batch, tokens, TEACHER_ROUNDS)) for count in counts}
    return medians(commands, TEACHER_ROUNDS)


def command(student: Path, count: int, sizes: tuple[int, int, int], *overrides: str) -> list[str | Path]:
    """Steps with `count` teachers, all of them different folders; sizes are batch, tokens, rounds."""
    batch, tokens, rounds = sizes
    routes = [f"t{i}" for i in range(count)]
    rows = write_rows(arithmetic(batch * (rounds + SPARE)), routes)
    name = " ".join([f"teachers {count}", *overrides])
    recipe = gopd_recipe(name, student, student, rows, (batch, tokens, rounds + SPARE))
    tree = yaml.safe_load(recipe.read_text())
    teacher = models.other(student.name, student)
    tree["teachers"] = {route: {"model": str(copy_of(teacher, i))} for i, route in enumerate(routes)}
    recipe.write_text(yaml.safe_dump(tree))
    return gopd_command(recipe, "train.tokens_per_micro_batch=16384", *overrides)


def medians(commands: dict[str, list[str | Path]], rounds: int) -> dict[str, Any]:
    """Median seconds per phase and of the whole step, their steps in turn."""
    return {
        name: {phase: median(a[f"seconds/{phase}"] for a in mine) for phase in PHASES}
        | {"step": median(a["seconds"] for a in mine)}
        for name, mine in interleaved(commands, rounds).items()
    }


def copy_of(folder: Path, number: int) -> Path:
    """The same model under another name, so that it is loaded once more."""
    copy = WORK / f"{folder.name}-{number}"
    if not copy.exists():
        shutil.copytree(folder, copy, copy_function=os.link)
    return copy
