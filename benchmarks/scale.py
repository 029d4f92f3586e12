"""What the reference model costs: steps with λ = 1, which need none, against λ = 1.25."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
from growth import steps


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    """Median seconds per phase and of the whole step, by λ."""
    student = models.endless("tiny", models.tiny()) if quick else models.endless("smollm2", models.smollm2())
    scales = {scale: [f"objective.reward_scale={scale}"] for scale in ("1.0", "1.25")}
    return steps(student, 8, 64, **scales)
