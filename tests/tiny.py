"""Recipes, rollouts and a float64 oracle for the tests of scorer, learner and validation.

The oracle knows nothing of packing, chunks or closed-form gradients: it runs Transformers' own forward on one row
at a time in float64 and leaves every gradient to autograd.
"""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from conftest import EOS, VOCABULARY
from gopd import views
from gopd.learner import Learner
from gopd.methods import opd
from gopd.methods.batch import Batch
from gopd.model import LanguageModel, load_model
from gopd.recipe import OpdRecipe, SftRecipe
from gopd.recipe_file import parse_recipe
from gopd.scorer import Scorer
from gopd.sections import ModelSpec
from gopd.sharding import ALONE, Ranks
from gopd.types import Prompt, Rollout, Scores, TokenTerms

CPU = torch.device("cpu")
NO_CLIP = 1e9


def opd_recipe(folder: Path, teachers: dict[str, dict[str, Any]], **sections: Any) -> OpdRecipe:
    """A recipe of tiny models; sections replace the bare ones here, `student` keys are added to the folder's."""
    tree: dict[str, Any] = {
        "student": {"model": str(folder)} | sections.pop("student", {}),
        "teachers": teachers,
        "data": {"files": ["rows.jsonl"], "max_response_tokens": 64},
        "train": {"steps": 4} | sections.pop("train", {}),
        "optim": {"lr": 1e-3, "grad_clip": NO_CLIP} | sections.pop("optim", {}),
        **sections,
    }
    recipe = parse_recipe(tree)
    assert isinstance(recipe, OpdRecipe)
    return recipe


def sft_recipe(folder: Path, **sections: Any) -> SftRecipe:
    tree: dict[str, Any] = {
        "method": "sft",
        "student": {"model": str(folder)} | sections.pop("student", {}),
        "data": {"files": ["rows.jsonl"]},
        "train": {"steps": 4} | sections.pop("train", {}),
        "optim": {"lr": 1e-3, "grad_clip": NO_CLIP} | sections.pop("optim", {}),
        **sections,
    }
    recipe = parse_recipe(tree)
    assert isinstance(recipe, SftRecipe)
    return recipe


def load(folder: Path, narrow: bool = False) -> LanguageModel:
    """A student of its own; read from the folder once."""
    return copy.deepcopy(_load(folder, narrow))


@functools.cache
def _load(folder: Path, narrow: bool) -> LanguageModel:
    spec = ModelSpec(model=str(folder))
    return load_model(spec, "student", device=CPU, dtype=torch.float32, narrow=narrow)


def make_prompt(index: int, text: str, route: str | None, data_source: str = "math") -> Prompt:
    return Prompt(
        index=index,
        where=f"rows.jsonl:{index + 1}",
        messages=({"role": "user", "content": text},),
        data_source=data_source,
        verifier="none",
        ground_truth=None,
        route=route,
        response=None,
        fields={"solution": f"so {index}+{index}"},
    )


LENGTHS = (5, 1, 9, 3, 14, 2, 7)
"""Response tokens of each row."""


def make_rollouts(
    recipe: OpdRecipe | SftRecipe,
    model: LanguageModel,
    routes: Sequence[str | None],
    lengths: Sequence[int] = LENGTHS,
) -> list[Rollout]:
    """Random responses of uneven length to uneven prompts; all but every third end with EOS, the others are cut."""
    generator = torch.Generator().manual_seed(1)
    texts = ["what is 2+2?", "hi", "sort [3, 1, 2] please", "x", "name = 'a'; print(name)"]
    prompts = [
        make_prompt(i, texts[i % len(texts)], routes[i % len(routes)], ("math", "code")[i % 2])
        for i in range(len(lengths))
    ]
    ids = views.render(recipe.student.view, prompts, model.tokenizer)
    rollouts = []
    for i, (prompt, prompt_ids, length) in enumerate(zip(prompts, ids, lengths, strict=True)):
        finished = i % 3 != 2
        response = torch.randint(4, VOCABULARY, (length,), generator=generator).tolist()
        if finished:
            response[-1] = EOS
        rollouts.append(Rollout(prompt, 0, prompt_ids, response, None, finished, "", None))
    return rollouts


# --- the oracle -----------------------------------------------------------------------------------------------------


@functools.cache
def plain64(folder: Path) -> PreTrainedModel:
    """A model folder through Transformers alone, in float64; shared, so not to be changed."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    return model.eval()


def plain64_now(folder: Path, student: LanguageModel) -> PreTrainedModel:
    """The same with a student's present weights."""
    model = copy.deepcopy(plain64(folder))
    model.load_state_dict(student.module.state_dict())
    return model


def row_logprobs(
    model: PreTrainedModel, prompt: Sequence[int], response: Sequence[int], temperature: float
) -> Tensor:
    """log softmax(logits / temperature) [R, V] at every response token, from a forward of that row alone."""
    ids = torch.tensor([[*prompt, *response]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1)


@dataclass
class TokenOracle:
    """What the oracle says at every token of one row; [R] each, without gradient."""

    logprobs: Tensor
    advantage: Tensor
    kl: Tensor
    weight: Tensor


@dataclass
class Expected:
    loss: float
    gradients: dict[str, Tensor]
    tokens: list[TokenOracle]


Weights = Callable[[Tensor, Tensor], Tensor]
"""(ℓ_train [R], ℓ_sampler [R]) → weights [R]."""


def expected_update(
    recipe: OpdRecipe,
    student: PreTrainedModel,
    rollouts: Sequence[Rollout],
    models: dict[str, tuple[PreTrainedModel, PreTrainedModel]],
    weights: Weights | None = None,
) -> Expected:
    """Loss and gradients of one update by brute force. `models` gives teacher and reference of each route."""
    tokens, losses = [], []
    total = sum(len(r.response_ids) for r in rollouts)
    rewards = group_rewards(rollouts, normalize=recipe.grpo.normalize)
    for rollout in rollouts:
        route = rollout.prompt.route
        assert route is not None
        factor = {
            "token-mean": 1 / total,
            "seq-mean-token-mean": 1 / (len(rollouts) * len(rollout.response_ids)),
            "seq-mean-token-sum": 1 / len(rollouts),
        }[recipe.objective.aggregation]
        reward = recipe.objective.reward_weight * rewards[id(rollout)]
        loss_R, seen = _row(recipe, student, rollout, *models[route], reward, weights)
        losses.append(factor * loss_R.sum())
        tokens.append(seen)
    loss = torch.stack(losses).sum()
    names, parameters = zip(*student.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    return Expected(float(loss.detach()), dict(zip(names, gradients, strict=True)), tokens)


def group_rewards(rollouts: Sequence[Rollout], *, normalize: bool) -> dict[int, float]:
    """Each rollout's reward against the others to its prompt, by `id`; 0 without rewards."""
    found = {}
    for rollout in rollouts:
        group = [r.reward or 0.0 for r in rollouts if r.prompt.index == rollout.prompt.index]
        deviation = statistics.stdev(group) + 1e-6 if normalize and len(group) > 1 else 1.0
        found[id(rollout)] = ((rollout.reward or 0.0) - statistics.fmean(group)) / deviation
    return found


def _row(
    recipe: OpdRecipe,
    student: PreTrainedModel,
    rollout: Rollout,
    teacher: PreTrainedModel,
    reference: PreTrainedModel,
    reward: float,
    weights: Weights | None,
) -> tuple[Tensor, TokenOracle]:
    temperature, objective = recipe.sampler.temperature, recipe.objective
    assert rollout.prompt.route is not None
    scale = recipe.reward_scale(rollout.prompt.route)
    where = (rollout.prompt_ids, rollout.response_ids, temperature)
    own = row_logprobs(student, *where)
    with torch.no_grad():
        theirs, base = row_logprobs(teacher, *where), row_logprobs(reference, *where)
    pick = (torch.arange(len(rollout.response_ids)), torch.tensor(rollout.response_ids))
    target = (theirs.exp() ** scale * base.exp() ** (1 - scale)).log()
    target = target - target.exp().sum(-1, keepdim=True).log()
    advantage_V = (scale * (theirs - base) - (own - base)).detach()
    advantage = advantage_V[pick]
    kl = (own.exp() * (own - target)).sum(-1)
    if objective.control_variate:
        advantage = advantage - (own.detach().exp() * advantage_V).sum(-1)
    advantage = advantage + reward
    if objective.estimator == "sampled":
        loss = -advantage * own[pick]
        one_sample = (own - target)[pick]
        seen_kl = kl if objective.control_variate else one_sample
    elif objective.estimator == "full":
        loss = seen_kl = kl
    else:
        loss = seen_kl = _topk(own, target, objective.top_k)
    weight = torch.ones(len(pick[0]), dtype=torch.float64)
    if weights is not None:
        assert rollout.sampler_logprobs_R is not None
        weight = weights(own[pick].detach(), rollout.sampler_logprobs_R.double())
    return weight * loss, TokenOracle(own[pick].detach(), advantage, seen_kl.detach(), weight)


def _topk(own: Tensor, target: Tensor, k: int) -> Tensor:
    values = []
    for own_V, target_V in zip(own, target, strict=True):
        inside = set(own_V.detach().sort(descending=True).indices[:k].tolist())
        buckets = [[v] for v in inside] + [[v for v in range(len(own_V)) if v not in inside]]
        s = torch.stack([own_V.exp()[b].sum() for b in buckets])
        q = torch.stack([target_V.exp()[b].sum() for b in buckets])
        values.append((s * (s.log() - q.log())).sum())
    return torch.stack(values)


# --- the real thing -------------------------------------------------------------------------------------------------


_scorers: dict[str, Scorer] = {}


def _scorer(recipe: OpdRecipe, student: LanguageModel) -> Scorer:
    """A scorer for the recipe; one that looks at the same keys is used again, unless the student is part of it."""
    if student.adapters is not None:
        return Scorer(recipe, student, device=CPU, dtype=torch.float32)
    lambdas = [recipe.reward_scale(route) for route in recipe.teachers]
    key = f"{recipe.student} {recipe.teachers} {recipe.reference} {lambdas} {recipe.train}"
    if key not in _scorers:
        _scorers[key] = Scorer(recipe, student, device=CPU, dtype=torch.float32)
    return _scorers[key]


@dataclass
class Bench:
    """A recipe with its student, scorer and learner."""

    recipe: OpdRecipe
    student: LanguageModel
    scorer: Scorer
    learner: Learner

    @classmethod
    def of(cls, recipe: OpdRecipe, total_steps: int = 4, ranks: Ranks = ALONE) -> Bench:
        student = load(Path(recipe.student.model), narrow=recipe.train.compute_dtype == "bfloat16")
        if recipe.student.lora is not None:
            student.add_lora(recipe.student.lora, recipe.train.seed)
        if ranks.mesh is None:
            scorer = _scorer(recipe, student)
        else:
            scorer = _scorer(recipe, load(Path(recipe.student.model)))
            student.shard(ranks, offload=recipe.cluster.offload)
        learner = Learner(
            recipe,
            student,
            total_steps=total_steps,
            aggregation=recipe.objective.aggregation,
            objective=recipe.objective,
            correction=recipe.correction,
            temperature=recipe.sampler.temperature,
            heads=scorer.heads,
            ranks=ranks,
        )
        return cls(recipe, student, scorer, learner)

    def score(self, rollouts: Sequence[Rollout]) -> list[Scores | None]:
        return self.scorer.score(
            rollouts,
            temperature=self.recipe.sampler.temperature,
            keep_hidden=opd.needs_vocabulary(self.recipe.objective),
        )

    def terms(
        self, rollouts: Sequence[Rollout], scores: Sequence[Scores | None], on_policy: bool
    ) -> list[TokenTerms | None]:
        batch = Batch.of(self.recipe, rollouts, scores, exact=on_policy)
        return batch.terms(range(len(rollouts)), None)

    def update(self, rollouts: Sequence[Rollout], on_policy: bool = True) -> Any:
        scores = self.score(rollouts)
        return self.learner.update(rollouts, scores, self.terms(rollouts, scores, on_policy))


def first_gradients(learner: Learner) -> dict[str, Tensor]:
    """Gradients of the only update so far, after clipping: AdamW's first moment is then (1 − β1)·gradient."""
    assert learner.updates == 1
    beta, _ = learner.recipe.optim.betas
    return {
        name: learner.optimizer.state[parameter]["exp_avg"] / (1 - beta)
        for name, parameter in learner.parameters.items()
    }


def assert_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 2e-5) -> None:
    """Every gradient is there and equal to `tolerance` of the largest entry of them all."""
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 1e-3, "a vanishing gradient would prove nothing"
    for name, gradient in found.items():
        off = float((gradient.double() - expected[name].double()).abs().max())
        assert off <= tolerance * largest, f"{name}: off by {off / largest:.2g} of the largest gradient"


def assert_rows(found: Iterable[Tensor | None], expected: Iterable[Tensor], atol: float = 1e-4) -> None:
    for number, (row, other) in enumerate(zip(found, expected, strict=True)):
        assert row is not None, f"row {number}"
        torch.testing.assert_close(row.double(), other.double(), rtol=1e-4, atol=atol)
