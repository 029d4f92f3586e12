"""The learner: the student's weights, their optimizer, and one optimizer step at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from gopd.culprits import describe_culprits, find_culprits
from gopd.errors import RunFailed
from gopd.guard import NONE, Bounds, token_kls
from gopd.logprobs import Projection, Target, chunks, linear_logprobs, linear_loss
from gopd.loss import MicroBatchLoss
from gopd.model import LanguageModel
from gopd.objective import aggregation_weights, reverse_kl
from gopd.packing import Packed, deal, pack
from gopd.recipe import Recipe
from gopd.sections import Aggregation, CorrectionSection, ObjectiveSection
from gopd.sharding import ALONE, Ranks, whole
from gopd.state import export_model, load_state, save_state
from gopd.types import Rollout, Scores, TokenReport, TokenTerms

Heads = Callable[[str | None], tuple[Tensor, Tensor | None]]
"""Route → heads [V, D] of its teacher and reference."""


class NonFinite(RunFailed):
    """A loss or gradient that is not a number. `rows` are the batch's row numbers that may be to blame."""

    def __init__(self, message: str, rows: list[int]) -> None:
        super().__init__(message)
        self.rows = rows

    def __reduce__(self) -> tuple[type[NonFinite], tuple[str, list[int]]]:
        """Between processes it keeps its rows."""
        return NonFinite, (str(self), self.rows)


@dataclass(frozen=True, slots=True)
class Update:
    """What one optimizer step did. `reports` has one entry per rollout, in order; None where nothing was learned.

    `refused` says what was out of bounds, and then nothing was done.
    """

    loss: float
    grad_norm: float
    lr: float
    reports: list[TokenReport | None]
    refused: str | None = None


class Learner:
    """Trains a student by AdamW on per-token losses, in packed micro-batches, whatever method made the terms.

    `objective` and `correction` are the recipe's, or None for methods that have neither (then plain
    policy-gradient terms, as for SFT, where they are log-likelihood).

    With several `ranks` the student is sharded over them (`LanguageModel.shard`). Each is called with the whole batch,
    computes its share of the rows, and tells what it saw of those; loss, gradients and weights are those of the batch.
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
        ranks: Ranks = ALONE,
    ) -> None:
        self.recipe = recipe
        self.student = student
        self.total_steps = total_steps
        self.aggregation = aggregation
        self.objective = objective or ObjectiveSection()
        self.correction = correction or CorrectionSection()
        self.temperature = temperature
        self.heads = heads
        self.ranks = ranks
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
        bounds: Bounds = NONE,
    ) -> Update:
        """One optimizer step on the whole of `rollouts`: forward and backward by micro-batch, clip, step.

        The loss is aggregated over all rows, so micro-batching does not change it; rows without terms add 0 to it, and
        no pass is made for them. `done` is called with the number of rows finished after each micro-batch. Raises
        NonFinite, or returns with `refused` what is out of bounds, before weights, optimizer and schedule are touched.
        """
        torch.manual_seed(_seed(self.recipe.train.seed, self.updates, self.ranks.rank))
        self.student.module.train(self._training_mode)
        try:
            return self._update(rollouts, scores, terms, done, bounds)
        finally:
            self.optimizer.zero_grad(set_to_none=True)
            self.student.module.eval()

    def _update(
        self,
        rollouts: Sequence[Rollout],
        scores: Sequence[Scores | None],
        terms: Sequence[TokenTerms | None],
        done: Callable[[int], None],
        bounds: Bounds,
    ) -> Update:
        lengths_B = torch.tensor([len(r.response_ids) for r in rollouts])
        factors_B = aggregation_weights(lengths_B, self.aggregation).float()
        loss, reports, spoiled = 0.0, dict[int, TokenReport](), list[int]()
        known = {i: term for i, term in enumerate(terms) if term is not None}
        for rows in self._groups(rollouts, scores, list(known)):
            of_rows_B = factors_B[torch.tensor(rows, dtype=torch.long)]
            part, seen = self._backward(
                [rollouts[i] for i in rows], [scores[i] for i in rows], [known[i] for i in rows], of_rows_B
            )
            if not math.isfinite(part):
                spoiled += rows
            loss += part
            reports |= dict(zip(rows, seen, strict=True))
            done(len(reports))
        loss = self.ranks.total(loss)
        if not math.isfinite(loss):
            raise self._spoiled(loss, {i: (rollouts[i], reports[i]) for i in spoiled})
        norm = float(
            whole(torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.optim.grad_clip))
        )
        if not math.isfinite(norm):
            raise NonFinite(
                f"the gradient norm is {norm} in optimizer step {self.updates + 1}; lower optim.lr, or look for logits "
                "and advantages that are very large",
                list(range(len(rollouts))),
            )
        kl = self._mean_kl(reports.values()) if bounds.measures_kl else 0.0
        lr, refused = self.lr(self.updates), bounds.passed(loss, norm, kl)
        if refused is None:
            self._step(lr)
        return Update(loss, norm, lr, [reports.get(i) for i in range(len(rollouts))], refused)

    def _step(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.updates += 1

    def _spoiled(self, loss: float, rows: Mapping[int, tuple[Rollout, TokenReport]]) -> NonFinite:
        """Names the row and token to blame where numbers tell; `rows` are those of micro-batches that are spoiled."""
        message = f"the loss is {loss} in optimizer step {self.updates + 1}"
        if not (found := find_culprits(rows)):
            return NonFinite(message, list(rows))
        tokenizer = self.student.tokenizer
        words = describe_culprits(
            found,
            {i: rollout for i, (rollout, _) in rows.items()},
            lambda token: str(tokenizer.decode([token])),
        )
        return NonFinite(f"{message}: {words}", list(found))

    def _mean_kl(self, reports: Iterable[TokenReport]) -> float:
        """Over all tokens of all ranks that have one; 0 where none has."""
        known = [kl_R for report in reports if (kl_R := token_kls(report)) is not None]
        total = self.ranks.total(sum(float(kl_R.double().sum()) for kl_R in known))
        return total / max(1.0, self.ranks.total(float(sum(map(len, known)))))

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
    def logprobs(self, rollouts: Sequence[Rollout]) -> dict[int, Tensor]:
        """The present weights' log-probs of responses, [R] each on the CPU, by row: a pass of its own."""
        found: dict[int, Tensor] = {}
        for rows in self._groups(rollouts, [None] * len(rollouts), range(len(rollouts))):
            packed = self._packed([rollouts[i] for i in rows])
            values_T = self.student.together(partial(self._own_logprobs, packed)).cpu()
            found |= zip(rows, packed.split(values_T), strict=False)
        return found

    @torch.no_grad()
    def kl_to_target(
        self, rollouts: Sequence[Rollout], scores: Sequence[Scores | None], temperature: float
    ) -> dict[int, float]:
        """Σ_t KL(S ‖ q_λ) over the whole vocabulary, by row, of rows with scores; these must hold hidden states."""
        found: dict[int, float] = {}
        for rows in self._groups(
            rollouts, scores, [i for i, score in enumerate(scores) if score is not None]
        ):
            packed, target = (
                self._packed([rollouts[i] for i in rows]),
                self._target([scores[i] for i in rows]),
            )
            kl_T = self.student.together(partial(self._kl, packed, target, temperature))
            found |= {i: float(kl_R.sum()) for i, kl_R in zip(rows, packed.split(kl_T), strict=False)}
        return found

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """The student's weights, whole, by their Hugging Face names (`LanguageModel.weights`)."""
        return self.student.weights()

    def export(self, folder: Path) -> None:
        """Writes the student's weights and configuration into a folder; when training is over."""
        export_model(self.student, self.ranks, folder)

    def save(self, folder: Path) -> None:
        """Writes trained weights and optimizer state as safetensors into a folder."""
        save_state(folder, self.parameters, self.optimizer, self.ranks)

    def load(self, folder: Path, updates: int) -> None:
        """Takes up what any number of ranks saved after `updates` optimizer steps; values are copied bit for bit."""
        load_state(folder, self.parameters, self.optimizer, self.ranks)
        self.updates = updates

    def _groups(
        self, rollouts: Sequence[Rollout], scores: Sequence[Scores | None], chosen: Sequence[int]
    ) -> list[list[int]]:
        """This rank's micro-batches of the chosen row numbers; of one route each where the estimator needs its heads.

        Empty ones are there to keep step with the other ranks.
        """
        by_head: dict[str | None, list[int]] = {}
        for i in chosen:
            score = scores[i]
            hidden = score is not None and score.hidden is not None
            by_head.setdefault(score.route if score is not None and hidden else None, []).append(i)
        groups = []
        for rows in by_head.values():
            prompts = [rollouts[i].prompt_ids for i in rows]
            responses = [rollouts[i].response_ids for i in rows]
            rounds = deal(prompts, responses, self.recipe.train.tokens_per_micro_batch, self.ranks.count)
            groups += [[rows[g] for g in groups[self.ranks.rank]] for groups in rounds]
        return groups

    def _packed(self, rollouts: Sequence[Rollout]) -> Packed:
        """Rows end to end; a stand-in of two tokens where there are none."""
        prompts, responses = [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
        return pack(prompts or [[0]], responses or [[0]], self.student.device)

    def _backward(
        self, rollouts: list[Rollout], scores: list[Scores | None], terms: list[TokenTerms], factors_B: Tensor
    ) -> tuple[float, list[TokenReport]]:
        packed = self._packed(rollouts)
        if not rollouts:
            scores, terms, factors_B = [None], [TokenTerms(torch.zeros(1), 1.0)], torch.zeros(1)
        chunk_loss = MicroBatchLoss(
            self.objective,
            self.correction,
            packed,
            terms,
            scores,
            factors_B.to(self.student.device)[packed.row_T],
            self._target(scores),
            self.temperature,
        )
        loss = self.student.together(partial(self._loss, packed, chunk_loss))
        loss.backward()
        return float(loss.detach()), chunk_loss.reports() if rollouts else []

    def _loss(self, packed: Packed, chunk_loss: MicroBatchLoss) -> Tensor:
        projection = self.student.project(packed)
        chunk_loss.prepare(projection)
        return linear_loss(projection, chunk_loss, self.temperature)

    def _own_logprobs(self, packed: Packed) -> Tensor:
        return linear_logprobs(self.student.project(packed), packed.targets_T, self.temperature)

    def _kl(self, packed: Packed, target: Target | None, temperature: float) -> Tensor:
        parts: list[Tensor] = []
        for chunk in chunks(self.student.project(packed), temperature):
            if target is None:  # a stand-in
                return torch.zeros(1)
            target_CV, _ = target.chunk(
                packed.targets_T[chunk.tokens], chunk.tokens, temperature, chunk.scratch
            )
            parts.append(reverse_kl(chunk.logprobs_CV, chunk.probs_CV, target_CV)[0])
        return torch.cat(parts)

    def _target(self, scores: list[Scores | None]) -> Target | None:
        first = scores[0] if scores else None
        if first is None or first.hidden is None:
            return None
        assert self.heads is not None
        teacher_head, reference_head = self.heads(first.route)
        hidden = [s.hidden.states() for s in scores if s is not None and s.hidden is not None]
        teacher = Projection(self._here([t for t, _ in hidden]), teacher_head)
        reference = None
        if reference_head is not None:
            reference = Projection(self._here([r for _, r in hidden if r is not None]), reference_head)
        return Target(teacher, reference, first.reward_scale)

    def _here(self, rows: Sequence[Tensor]) -> Tensor:
        """Rows end to end; from another process they come in host memory."""
        return torch.cat([row.to(self.student.device) for row in rows])


def _seed(seed: int, update: int, rank: int) -> int:
    """Of what an optimizer step draws (dropout)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{update}/{rank}".encode()).digest()[:8], "little") >> 1
