"""What a model does on the held-out problems of one domain, per problem, and where it stands to teacher and base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from cells import PROMPT_TOKENS, RESPONSE_TOKENS
from torch import Tensor

from gopd.logprobs import Scratch, chunks
from gopd.model import LanguageModel, load_model
from gopd.objective import reverse_kl
from gopd.packing import micro_batches, pack
from gopd.rollouts import grade, prompt_set, sample_rollouts
from gopd.sampler.torch import TorchSampler
from gopd.sections import ModelSpec, SamplingSection, SourceSection, View
from gopd.types import Rollout

CPU = torch.device("cpu")
SLOTS, MICRO_BATCH = 128, 8192
EVALUATION = 7
"""First number of the random streams here."""


@dataclass(frozen=True)
class Figures:
    """One response to each problem. `right` has a digit per problem; the others are means over tokens, in nats.

    `implicit` is ℓ_T − ℓ_R, the reward of generalized distillation, with the domain's own teacher and the base.
    """

    right: str
    tokens: float
    truncated: float
    entropy: float
    kl_to_teacher: float
    kl_to_base: float
    implicit: float


def load(name: str) -> LanguageModel:
    return load_model(ModelSpec(model=name), name, device=CPU, dtype=torch.float32).freeze()


def measure(
    model: LanguageModel, teacher: LanguageModel, base: LanguageModel, file: Path, seed: int
) -> Figures:
    """Samples at temperature 1 and grades; compares the distributions at every token over the whole vocabulary."""
    prompts = prompt_set(
        SourceSection(files=(str(file),)), model.tokenizer, model.name, View(), limit=PROMPT_TOKENS
    )
    rollouts = sample_rollouts(
        TorchSampler(model, SLOTS),
        model.tokenizer,
        prompts,
        SamplingSection(),
        samples=1,
        max_response_tokens=RESPONSE_TOKENS,
        stream=(seed, EVALUATION),
        progress=lambda done, total, tokens: None,
    )
    grade(rollouts)
    entropy, to_teacher, to_base, implicit = (
        float(values_T.mean()) for values_T in compared(model, teacher, base, rollouts)
    )
    return Figures(
        right="".join(str(int(r.reward or 0)) for r in rollouts),
        tokens=sum(len(r.response_ids) for r in rollouts) / len(rollouts),
        truncated=sum(not r.finished for r in rollouts) / len(rollouts),
        entropy=entropy,
        kl_to_teacher=to_teacher,
        kl_to_base=to_base,
        implicit=implicit,
    )


@torch.no_grad()
def compared(
    model: LanguageModel, teacher: LanguageModel, base: LanguageModel, rollouts: list[Rollout]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entropy, KL to teacher, KL to base and ℓ_T − ℓ_R at every response token."""
    found: list[list[Tensor]] = [[], [], [], []]
    scratch = Scratch()
    prompts, responses = [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts]
    for rows in micro_batches(prompts, responses, MICRO_BATCH):
        packed = pack([prompts[i] for i in rows], [responses[i] for i in rows], CPU)
        others = [other.project(packed) for other in (teacher, base)]
        for chunk in chunks(model.project(packed), 1.0):
            ids_C1 = packed.targets_T[chunk.tokens].unsqueeze(-1)
            found[0].append(-(chunk.probs_CV * chunk.logprobs_CV).sum(-1))
            own_CV, sampled = chunk.logprobs_CV.clone(), []
            for place, other in enumerate(others):
                other_CV = other.logprobs(chunk.tokens, 1.0, scratch, "other")
                sampled.append(other_CV.gather(-1, ids_C1).squeeze(-1))
                found[1 + place].append(reverse_kl(own_CV.clone(), chunk.probs_CV, other_CV)[0])
            found[3].append(sampled[0] - sampled[1])
    entropy_T, teacher_T, base_T, implicit_T = (torch.cat(parts) for parts in found)
    return entropy_T, teacher_T, base_T, implicit_T
