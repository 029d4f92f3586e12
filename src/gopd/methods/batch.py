"""A step's rollouts as the recipe's method sees them: who takes part, in which updates, with which terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from gopd.methods import grpo, opd, sft
from gopd.recipe import AnyRecipe, OpdRecipe, SampledRecipe
from gopd.types import Rollout, Scores, TokenTerms


@dataclass(frozen=True)
class Batch:
    """Rollouts of one step with their scores.

    `advantages` are those of rewards, 0 where rewards are not in the loss. `exact`: the sampler's log-probs are the
    trainer's own.
    """

    recipe: AnyRecipe
    rollouts: Sequence[Rollout]
    scores: Sequence[Scores | None]
    advantages: Sequence[float]
    exact: bool

    @classmethod
    def of(
        cls, recipe: AnyRecipe, rollouts: Sequence[Rollout], scores: Sequence[Scores | None], *, exact: bool
    ) -> Batch:
        """Compares rewards within groups, where the recipe learns from them."""
        advantages = [0.0] * len(rollouts)
        if isinstance(recipe, SampledRecipe):
            judged = [i for i, r in enumerate(rollouts) if recipe.learns_from_reward(r.prompt.route)]
            found = grpo.advantages(recipe.grpo, [rollouts[i] for i in judged]) if judged else []
            for i, advantage in zip(judged, found, strict=True):
                advantages[i] = advantage
        return cls(recipe, rollouts, scores, advantages, exact)

    def parts(self) -> list[list[int]]:
        """The rows of each optimizer step, in order: mini-batches, as often as the recipe passes over them."""
        rows = [i for i in range(len(self.rollouts)) if not self._dropped(i)]
        size = max(1, -(-len(rows) // self.recipe.train.mini_batches))
        cut = [rows[start : start + size] for start in range(0, len(rows), size)]
        return cut * self.recipe.train.passes

    def old_logprobs(self, compute: Callable[[Sequence[Rollout]], dict[int, Tensor]]) -> dict[int, Tensor]:
        """The trainer's log-probs before any update, of rows whose loss has a ratio; to be asked for in time.

        Nothing is computed where there is one update only, or where the sampler's own log-probs will do.
        """
        parts = self.parts()
        rows = [i for i in sorted({i for part in parts for i in part}) if self._has_ratio(i)]
        if len(parts) <= 1 or not rows:
            return {}
        if not self.exact:
            found = compute([self.rollouts[i] for i in rows])
            return {row: found[place] for place, row in enumerate(rows)}
        known = {i: self.rollouts[i].sampler_logprobs_R for i in rows}
        return {i: logprobs_R for i, logprobs_R in known.items() if logprobs_R is not None}

    def terms(self, rows: Sequence[int], old: dict[int, Tensor] | None) -> list[TokenTerms | None]:
        """Terms of some rows; `old` as from `old_logprobs`, None while no update has been made."""
        return [self._terms(i, old) for i in rows]

    def teaches(self, i: int) -> bool:
        """Whether there is anything to learn from a rollout."""
        kl = isinstance(self.recipe, SampledRecipe) and self.recipe.grpo.kl_weight > 0
        return kl or self.advantages[i] != 0 or not self._on_reward_alone(i)

    def _terms(self, i: int, old: dict[int, Tensor] | None) -> TokenTerms | None:
        rollout, score, recipe = self.rollouts[i], self.scores[i], self.recipe
        if not isinstance(recipe, SampledRecipe):
            return sft.token_terms(rollout)
        possible = recipe.correction.mode == "auto"
        if not self.teaches(i):
            return None
        if self._on_reward_alone(i):
            before = None if old is None else old[i]
            corrected = possible and not self.exact
            return grpo.token_terms(
                recipe.grpo, rollout, self.advantages[i], score, old_logprobs_R=before, corrected=corrected
            )
        assert isinstance(recipe, OpdRecipe) and score is not None
        reward = recipe.objective.reward_weight * self.advantages[i]
        corrected = possible and not (self.exact and old is None)
        return opd.token_terms(rollout, score, reward, corrected=corrected)

    def _has_ratio(self, i: int) -> bool:
        return self._on_reward_alone(i) and self.teaches(i)

    def _on_reward_alone(self, i: int) -> bool:
        route = self.rollouts[i].prompt.route
        return isinstance(self.recipe, SampledRecipe) and not self.recipe.has_teacher(route)

    def _dropped(self, i: int) -> bool:
        if not isinstance(self.recipe, SampledRecipe) or not self.recipe.grpo.drop_uniform:
            return False
        return self._on_reward_alone(i) and self.advantages[i] == 0
