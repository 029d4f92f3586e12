"""Where the student's likely tokens are the teacher's as well: both distributions, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gopd.doctor.evidence import Overlap
from gopd.logprobs import Projection, chunks
from gopd.model import LanguageModel
from gopd.packing import pack
from gopd.scorer import Scorer
from gopd.seats import Seat
from gopd.types import Rollout

TOP_K = 16
"""Size of the compared sets. A choice: of a vocabulary of 150,000, sixteen tokens hold nearly all of a distribution."""


@torch.no_grad()
def overlaps(
    student: LanguageModel, scorer: Scorer, rollouts: Sequence[Rollout], temperature: float
) -> dict[str, Overlap]:
    """Of every teacher whose weights are here, over the response tokens of its own rows."""
    here = {name for name, route in scorer.routes.items() if isinstance(route.teacher, Seat)}
    sums: dict[str, Tensor] = {}
    for name, rows, target in scorer.targets(rollouts, here - {None}):
        assert name is not None
        mine = [rollouts[i] for i in rows]
        packed = pack([r.prompt_ids for r in mine], [r.response_ids for r in mine], student.device)
        found = agreement(student.project(packed), target.teacher, packed.targets_T, temperature)
        sums[name] = sums.get(name, 0) + found
    return {name: _overlap(values, len(student.head_VD)) for name, values in sums.items()}


def agreement(own: Projection, teacher: Projection, ids_T: Tensor, temperature: float) -> Tensor:
    """[tokens, shared, sampled, mass], summed over the tokens, float64; shared counts of top-k as a share of k."""
    total = torch.zeros(4, dtype=torch.float64)
    for chunk in chunks(own, temperature):
        shape = chunk.logprobs_CV.shape
        scores_CV = teacher.logits(
            chunk.tokens, temperature, chunk.scratch.array("logits", shape, own.hidden_TD)
        )
        top_k = min(TOP_K, shape[1])
        inside_CV = torch.zeros(shape, dtype=torch.bool, device=scores_CV.device)
        inside_CV.scatter_(1, scores_CV.topk(top_k).indices, True)
        shared_CK = inside_CV.gather(1, chunk.logprobs_CV.topk(top_k).indices)
        sampled_C1 = inside_CV.gather(1, ids_T[chunk.tokens].unsqueeze(1))
        mass_CV = chunk.probs_CV.masked_fill_(~inside_CV, 0)
        counts = (shared_CK.sum() / top_k, sampled_C1.sum(), mass_CV.sum(dtype=torch.float64))
        total += torch.tensor([shape[0], *map(float, counts)], dtype=torch.float64)
    return total


def _overlap(sums: Tensor, vocabulary: int) -> Overlap:
    tokens, shared, sampled, mass = sums.tolist()
    return Overlap(min(TOP_K, vocabulary), int(tokens), shared / tokens, sampled / tokens, mass / tokens)
