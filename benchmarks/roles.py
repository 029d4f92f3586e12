"""What the other roles cost: a reference, which λ = 1 does without and λ = 1.25 needs, and eight teachers for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
from growth import ROUNDS, command, medians


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    """Median seconds per phase and of the whole step; steps in turn."""
    student = models.endless("tiny", models.tiny()) if quick else models.endless("smollm2", models.smollm2())
    sizes = (16, 16, ROUNDS)
    commands = {
        "plain": command(student, 1, sizes),
        "λ = 1.25": command(student, 1, sizes, "objective.reward_scale=1.25"),
        "8 teachers": command(student, 8, sizes),
    }
    return medians(commands, ROUNDS)
