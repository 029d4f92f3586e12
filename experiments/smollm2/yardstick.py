"""Every student against the targets of both reward scales: runs with different λ aim at different targets."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import torch

from gopd.model import load_model
from gopd.recipe import OpdRecipe
from gopd.recipe_file import load_recipe
from gopd.rollouts import prompt_set
from gopd.scorer import Scorer
from gopd.setup import make_learner
from gopd.tracking import rollouts_file
from gopd.types import Rollout
from gopd.validate import exact_kl, kl_interval

SCALES = (1.0, 1.25)
Interval = tuple[float, float, float]
"""Mean in nats per token, and the ends of its 95% interval."""


def measure(run: Path, step: int, start: str) -> dict[str, Interval]:
    """KL of a finished run's student at step 0 or its last to the target of each scale, on its own held-out responses.

    `start` is the model that the run started from, which is the reference too. Kept in the run's folder.
    """
    kept = run / f"yardstick-{step}.json"
    if not kept.exists():
        found = {str(scale): _kl(run, step, start, scale) for scale in SCALES}
        kept.write_text(json.dumps(found))
    return {scale: tuple(values) for scale, values in json.loads(kept.read_text()).items()}


def _kl(run: Path, step: int, start: str, scale: float) -> Interval:
    student_folder = start if step == 0 else str(run / "student")
    recipe = load_recipe(
        run / "recipe.yaml",
        [
            f"objective.reward_scale={scale}",
            f"student.model={student_folder}",
            *([] if scale == 1 else [f"reference={{model: {start}}}"]),
        ],
    )
    assert isinstance(recipe, OpdRecipe) and recipe.validation is not None
    cpu = torch.device("cpu")
    student = load_model(recipe.student, "student", device=cpu, dtype=torch.float32)
    prompts = prompt_set(
        recipe.validation,
        student.tokenizer,
        student.name,
        recipe.student.view,
        routes=tuple(recipe.teachers),
        limit=recipe.data.max_prompt_tokens,
    )
    places = {p.where: i for i, p in enumerate(prompts.prompts)}
    rollouts = []
    for row in pq.read_table(rollouts_file(run / "validation" / "student", step)).to_pylist():
        i = places[row["where"]]
        rollouts.append(
            Rollout(prompts.prompts[i], 0, prompts.ids[i], row["response_ids"], None, row["finished"], "")
        )
    scorer = Scorer(recipe, student, device=cpu, dtype=torch.float32)
    learner = make_learner(recipe, student, scorer.heads, updates=0)
    budget = recipe.train.tokens_per_micro_batch
    return kl_interval(rollouts, exact_kl(learner, scorer, rollouts, recipe.sampler.temperature, budget))
