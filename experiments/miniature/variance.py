"""How noisy the estimators' gradients are at fixed weights: the base, on the very same rollouts for all."""

from __future__ import annotations

from typing import Any

import torch
from cells import ESTIMATORS, EXOPD, MATH, Place, distillation
from torch import Tensor

from gopd.collect import TRAINING
from gopd.methods.batch import Batch
from gopd.methods.opd import needs_vocabulary
from gopd.recipe import OpdRecipe
from gopd.recipe_file import parse_recipe
from gopd.rollouts import sample_rollouts
from gopd.setup import LocalRoles, prepare
from gopd.types import Rollout

BATCHES = 24


def measure(place: Place) -> dict[str, dict[str, float]]:
    """By estimator: |mean gradient|² over batches, without its bias, and the trace of the gradients' covariance."""
    found = {}
    rollouts: list[list[Rollout]] = []
    for name, objective in {"sampled": {}, **ESTIMATORS}.items():
        tree = distillation(MATH, EXOPD, place, **objective)
        tree["train"]["steps"] = BATCHES
        tree["optim"] |= {"lr": 1e-30, "grad_clip": 1e30}  # so that no step moves the weights
        recipe = parse_recipe(tree)
        assert isinstance(recipe, OpdRecipe)
        gradients_ND = _gradients(recipe, rollouts)
        mean_D = gradients_ND.mean(0)
        trace = float((gradients_ND - mean_D).square().sum() / (BATCHES - 1))
        signal = float(mean_D.square().sum()) - trace / BATCHES
        found[name] = {"signal": signal, "variance": trace}
    return found


def _gradients(recipe: OpdRecipe, rollouts: list[list[Rollout]]) -> Tensor:
    """One gradient per batch of rollouts, which the first call draws."""
    task = prepare(recipe)
    roles = LocalRoles(recipe, task)
    assert roles.scorer is not None
    start = [p.detach().clone() for p in roles.learner.parameters.values()]
    if not rollouts:
        rollouts += [
            sample_rollouts(
                roles.sampler,
                task.tokenizer,
                task.data.part(task.order.indices(step)),
                recipe.sampler,
                samples=1,
                max_response_tokens=recipe.data.max_response_tokens,
                stream=(recipe.train.seed, TRAINING, step),
                progress=lambda done, total, tokens: None,
            )
            for step in range(BATCHES)
        ]
    gradients: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        gradients.append(
            torch.cat([p.grad.flatten() for p in roles.learner.parameters.values() if p.grad is not None])
        )

    roles.learner.optimizer.register_step_pre_hook(keep)
    for batch in rollouts:
        scores = roles.scorer.score(
            batch, temperature=recipe.sampler.temperature, keep_hidden=needs_vocabulary(recipe.objective)
        )
        made = Batch.of(recipe, batch, scores, exact=roles.sampler.exact)
        roles.learner.update(batch, scores, made.terms(range(len(batch)), None))
    for before, after in zip(start, roles.learner.parameters.values(), strict=True):
        assert torch.equal(before, after)
    return torch.stack(gradients)
