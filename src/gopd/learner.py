"""The learner: the student's weights, their optimizer, and one optimizer step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gopd.errors import RunFailed
from gopd.logprobs import Projection, Target, linear_logprobs, linear_loss
from gopd.loss import MicroBatchLoss
from gopd.model import LanguageModel
from gopd.objective import aggregation_weights
from gopd.packing import micro_batches, pack
from gopd.recipe import Recipe
from gopd.sections import Aggregation, CorrectionSection, ObjectiveSection
from gopd.types import Rollout, Scores, TokenReport, TokenTerms

Heads = Callable[[str | None], tuple[Tensor, Tensor | None]]
"""Route → heads [V, D] of its teacher and reference."""


class NonFinite(RunFailed):
    """A loss or gradient that is not a number. `rows` are the batch's row numbers that may be to blame."""

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step did. `reports` has one entry per rollout, in order; None where nothing was learned."""

    loss: float
    grad_norm: float
    lr: float
    reports: list[TokenReport | None]


class Learner:
    """Trains a student by AdamW on per-token losses, in packed micro-batches, whatever method made the terms.

    `objective` and `correction` are the recipe's, or None for methods that have neither (then plain
    policy-gradient terms, as for SFT, where they are log-likelihood).
    """

    def __init__(
        self,
        recipe: Recipe,
        student: LanguageModel,
        *,
        total_steps: int,
        aggregation: Aggregation,
        objective: ObjectiveSection | None = None,
        correction: CorrectionSection | None = None,
        temperature: float = 1.0,
        heads: Heads | None = None,
    ) -> None:
        self.recipe = recipe
        self.student = student
        self.total_steps = total_steps
        self.aggregation = aggregation
        self.objective = objective or ObjectiveSection()
        self.correction = correction or CorrectionSection()
        self.temperature = temperature
        self.heads = heads
        self.updates = 0
        self.parameters = {n: p for n, p in student.module.named_parameters() if p.requires_grad}
        optim = recipe.optim
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        lora = recipe.student.lora
        # Eval mode otherwise: dropout would train on other log-probs than were sampled.
        self._training_mode = recipe.student.gradient_checkpointing or (lora is not None and lora.dropout > 0)
        if recipe.student.gradient_checkpointing:
            student.module.gradient_checkpointing_enable()
            student.module.enable_input_require_grads()

    def update(
        self,
        rollouts: Sequence[Rollout],
        scores: Sequence[Scores | None],
        terms: Sequence[TokenTerms | None],
        done: Callable[[int], None] = lambda rows: None,
    ) -> Update:
        """One optimizer step on the whole of `rollouts`: forward and backward by micro-batch, clip, step.

        The loss is aggregated over all rows, so micro-batching does not change it; rows without terms add 0 to it, and
        no pass is made for them. `done` is called with the number of rows finished after each micro-batch. Raises
        NonFinite before the weights are touched.
        """
        self.student.module.train(self._training_mode)
        self.optimizer.zero_grad(set_to_none=True)  # an update that raised leaves gradients
        lengths_B = torch.tensor([len(r.response_ids) for r in rollouts])
        factors_B = aggregation_weights(lengths_B, self.aggregation).float()
        loss, reports = 0.0, dict[int, TokenReport]()
        known = {i: term for i, term in enumerate(terms) if term is not None}
        for rows in self._groups(rollouts, scores, list(known)):
            batch = [rollouts[i] for i in rows]
            part, seen = self._backward(
                batch, [scores[i] for i in rows], [known[i] for i in rows], factors_B[torch.tensor(rows)]
            )
            if not math.isfinite(part):
                raise NonFinite(f"the loss is {part} in optimizer step {self.updates + 1}", rows)
            loss += part
            reports |= dict(zip(rows, seen, strict=True))
            done(len(reports))
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.optim.grad_clip)
        if not torch.isfinite(norm):
            raise NonFinite(
                f"the gradient norm is {float(norm)} in optimizer step {self.updates + 1}",
                list(range(len(rollouts))),
            )
        lr = self.lr(self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += 1
        self.student.module.eval()
        return Update(loss, float(norm), lr, [reports.get(i) for i in range(len(rollouts))])

    def lr(self, update: int) -> float:
        """Learning rate of optimizer step `update`, counted from 0: linear warm-up, then the schedule."""
        optim = self.recipe.optim
        if update < optim.warmup_steps:
            return optim.lr * (update + 1) / optim.warmup_steps
        done = (update - optim.warmup_steps) / max(1, self.total_steps - optim.warmup_steps)
        match optim.schedule:
            case "constant":
                return optim.lr
            case "linear":
                return optim.lr * (1 - done)
            case "cosine":
                return optim.lr * (1 + math.cos(math.pi * done)) / 2

    @torch.no_grad()
    def logprobs(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """The present weights' log-probs of every response, [R] each on the CPU: a pass of its own."""
        found: dict[int, Tensor] = {}
        prompts, responses = [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
        for rows in micro_batches(prompts, responses, self.recipe.train.tokens_per_micro_batch):
            packed = pack([prompts[i] for i in rows], [responses[i] for i in rows], self.student.device)
            values_T = linear_logprobs(self.student.project(packed), packed.targets_T, self.temperature)
            found |= dict(zip(rows, packed.split(values_T.cpu()), strict=True))
        return [found[i] for i in range(len(rollouts))]

    def _groups(
        self, rollouts: Sequence[Rollout], scores: Sequence[Scores | None], chosen: Sequence[int]
    ) -> list[list[int]]:
        """Micro-batches of the chosen row numbers; of one route each where the estimator needs that route's heads."""
        by_head: dict[str | None, list[int]] = {}
        for i in chosen:
            score = scores[i]
            hidden = score is not None and score.teacher_hidden_RD is not None
            by_head.setdefault(score.route if score is not None and hidden else None, []).append(i)
        groups = []
        for rows in by_head.values():
            prompts = [rollouts[i].prompt_ids for i in rows]
            responses = [rollouts[i].response_ids for i in rows]
            found = micro_batches(prompts, responses, self.recipe.train.tokens_per_micro_batch)
            groups += [[rows[g] for g in group] for group in found]
        return groups

    def _backward(
        self, rollouts: list[Rollout], scores: list[Scores | None], terms: list[TokenTerms], factors_B: Tensor
    ) -> tuple[float, list[TokenReport]]:
        device = self.student.device
        packed = pack([r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts], device)
        chunk_loss = MicroBatchLoss(
            self.objective,
            self.correction,
            packed,
            terms,
            scores,
            factors_B.to(device)[packed.row_T],
            self._target(scores),
            self.temperature,
        )
        projection = self.student.project(packed)
        chunk_loss.prepare(projection)
        loss = linear_loss(projection, chunk_loss, self.temperature)
        loss.backward()
        return float(loss.detach()), chunk_loss.reports()

    def _target(self, scores: list[Scores | None]) -> Target | None:
        first = scores[0]
        if first is None or first.teacher_hidden_RD is None:
            return None
        assert self.heads is not None
        teacher_head, reference_head = self.heads(first.route)
        hidden = [(s.teacher_hidden_RD, s.reference_hidden_RD) for s in scores if s is not None]
        teacher_TD = torch.cat([t for t, _ in hidden if t is not None])
        reference = None
        if reference_head is not None:
            reference = Projection(torch.cat([r for _, r in hidden if r is not None]), reference_head)
        return Target(Projection(teacher_TD, teacher_head), reference, first.reward_scale)

    def save(self, folder: Path) -> None:
        """Writes trained weights and optimizer state as safetensors into a folder."""
        save_file(
            {n: p.detach().contiguous() for n, p in self.parameters.items()}, folder / "weights.safetensors"
        )
        moments = {
            f"{name}:{key}": value.contiguous()
            for name, parameter in self.parameters.items()
            for key, value in self.optimizer.state[parameter].items()
        }
        save_file(moments, folder / "optimizer.safetensors")

    @torch.no_grad()
    def load(self, folder: Path, updates: int) -> None:
        """Takes up what `save` wrote after `updates` optimizer steps; values are copied in place, bit for bit."""
        weights, moments = (
            load_file(folder / "weights.safetensors"),
            load_file(folder / "optimizer.safetensors"),
        )
        for name, parameter in self.parameters.items():
            parameter.copy_(weights[name])
        for key, value in moments.items():
            name, _, moment = key.rpartition(":")
            parameter = self.parameters[name]
            self.optimizer.state[parameter][moment] = value.to(parameter.device)
        self.updates = updates
