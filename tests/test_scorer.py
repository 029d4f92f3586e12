"""Frozen models: who is loaded, who is run on which tokens, and what they say."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import VOCABULARY, MakeModel
from gopd import logprobs, views
from gopd.recipe import OpdRecipe
from gopd.scorer import Scorer
from gopd.sections import View
from gopd.types import Rollout, Scores
from tiny import CPU, Bench, assert_rows, load, make_rollouts, opd_recipe, plain64, row_logprobs

SOLUTION = {"template": "{prompt} hint: {solution}", "system": "be brief"}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens of logits at a time, so that rows straddle chunks."""
    monkeypatch.setattr(logprobs, "CHUNK_BYTES", 5 * 4 * VOCABULARY)


def scorer_of(recipe: OpdRecipe) -> Scorer:
    """A scorer of its own, so that its counts are this test's."""
    student = load(Path(recipe.student.model))
    if recipe.student.lora is not None:
        student.add_lora(recipe.student.lora, 0)
    return Scorer(recipe, student, device=CPU, dtype=torch.float32)


def rollouts_of(recipe: OpdRecipe, routes: list[str | None]) -> list[Rollout]:
    return make_rollouts(recipe, load(Path(recipe.student.model)), routes)


def count_tokens(scorer: Scorer) -> Counter[str]:
    """Tokens that go through the body of each frozen model from now on."""
    tokens: Counter[str] = Counter()
    for model in scorer.models:
        name = model.name

        def count(module: Any, arguments: Any, options: Any, name: str = name) -> None:
            tokens[name] += options["input_ids"].numel()

        model.body.register_forward_pre_hook(count, with_kwargs=True)
    return tokens


def fed(rollouts: list[Rollout], prompts: list[list[int]] | None = None) -> int:
    """Tokens of these rows that a model must see: the last response token predicts nothing."""
    prompts = prompts or [r.prompt_ids for r in rollouts]
    return sum(len(p) + len(r.response_ids) - 1 for p, r in zip(prompts, rollouts, strict=True))


def picked(
    folder: Path, rollout: Rollout, prompt_ids: list[int], temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probs [R] of the response, and the whole distributions [R, V], by a plain forward."""
    with torch.no_grad():
        whole = row_logprobs(plain64(folder), prompt_ids, rollout.response_ids, temperature)
    return whole.gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0], whole


# --- who is run -----------------------------------------------------------------------------------------------------


def test_each_teacher_sees_its_own_rows_only_and_one_has_no_reference(
    student_folder: Path, teacher_folder: Path, llama_folder: Path, reference_folder: Path
) -> None:
    teachers = {
        "opd": {"model": str(teacher_folder), "reward_scale": 1.0},
        "exopd": {"model": str(llama_folder), "reward_scale": 1.25},
        "idle": {"model": str(student_folder), "reward_scale": 1.0},
    }
    recipe = opd_recipe(student_folder, teachers, reference={"model": str(reference_folder)})
    scorer = scorer_of(recipe)
    tokens = count_tokens(scorer)
    rollouts = rollouts_of(recipe, ["opd", "exopd", "exopd"])
    scores = scorer.score(rollouts, temperature=1.0)
    opd = [r for r in rollouts if r.prompt.route == "opd"]
    exopd = [r for r in rollouts if r.prompt.route == "exopd"]
    names = {name: route.teacher.model.name for name, route in scorer.routes.items()}
    reference = scorer.routes["exopd"].reference
    assert reference is not None and scorer.routes["opd"].reference is None
    assert tokens == {names["opd"]: fed(opd), names["exopd"]: fed(exopd), reference.model.name: fed(exopd)}
    assert scorer.forwards == {
        names["opd"]: len(opd),
        names["exopd"]: len(exopd),
        reference.model.name: len(exopd),
    }
    assert [s.route for s in scores] == [r.prompt.route for r in rollouts]
    assert [s.reward_scale for s in scores] == [1.0 if s.route == "opd" else 1.25 for s in scores]
    for score in scores:
        assert score.teacher_logprobs_R is not None
        assert (
            (score.reference_logprobs_R is None) == (score.log_partition_R is None) == (score.route == "opd")
        )


def test_plain_opd_loads_no_reference(student_folder: Path, teacher_folder: Path) -> None:
    recipe = opd_recipe(
        student_folder, {"only": {"model": str(teacher_folder)}}, objective={"reward_scale": 1}
    )
    scorer = scorer_of(recipe)
    scorer.score(rollouts_of(recipe, ["only"]), temperature=1.0)
    assert len(scorer.models) == 1
    assert scorer.forwards == {f"teacher only ({teacher_folder})": 7}
    with_default = scorer_of(opd_recipe(student_folder, {"only": {"model": str(teacher_folder)}}))
    assert len(with_default.models) == 2


def test_a_checkpoint_named_twice_is_loaded_once(
    student_folder: Path, make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another teacher, as a reference, as the student's initial weights; by symlink and by relative path."""
    other = make_model(7)
    link = tmp_path / "link"
    link.symlink_to(student_folder)
    monkeypatch.chdir(student_folder.parent.parent)
    relative = Path(student_folder.parent.name) / student_folder.name
    teachers: dict[str, dict[str, Any]] = {
        "plain": {"model": str(student_folder)},
        "linked": {"model": str(link), "view": SOLUTION},
        "relative": {"model": f"./{relative}", "reference": {"model": str(relative)}},
        "other": {"model": f"{other}/", "reference": {"model": str(other.parent / "." / other.name)}},
    }
    scorer = scorer_of(opd_recipe(student_folder, teachers))
    assert len(scorer.models) == 2
    first = scorer.routes["plain"].teacher.model
    assert first is not scorer.student, "the student's weights change; the reference's do not"
    for route in ("plain", "linked", "relative"):
        reference = scorer.routes[route].reference
        assert reference is not None
        assert scorer.routes[route].teacher.model is reference.model is first


def test_a_rollout_without_a_known_teacher_is_refused(student_folder: Path, teacher_folder: Path) -> None:
    recipe = opd_recipe(student_folder, {"only": {"model": str(teacher_folder)}})
    scorer = scorer_of(recipe)
    for route in ("onyl", None):
        with pytest.raises(AssertionError, match="without a teacher"):
            scorer.score(rollouts_of(recipe, ["only", route]), temperature=1.0)


def test_forwards_stay_within_the_token_budget_of_the_longer_view(
    student_folder: Path, teacher_folder: Path
) -> None:
    recipe = opd_recipe(
        student_folder,
        {"only": {"model": str(teacher_folder)}},
        reference={"model": str(student_folder), "view": SOLUTION},
        train={"tokens_per_micro_batch": 200},
    )
    scorer, forwards = scorer_of(recipe), []
    for model in scorer.models:
        model.body.register_forward_pre_hook(
            lambda module, arguments, options: forwards.append(options["input_ids"].numel()), with_kwargs=True
        )
    scorer.score(rollouts_of(recipe, ["only"]), temperature=1.0)
    assert max(forwards) <= 200 and len(forwards) < 2 * 7


def test_progress_counts_rows(student_folder: Path, teacher_folder: Path) -> None:
    recipe = opd_recipe(
        student_folder, {"only": {"model": str(teacher_folder)}}, train={"tokens_per_micro_batch": 1}
    )
    seen: list[int] = []
    scorer_of(recipe).score(rollouts_of(recipe, ["only"]), temperature=1.0, done=seen.append)
    assert seen == [1, 2, 3, 4, 5, 6, 7]


# --- frozen ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["sampled", "full"])
def test_frozen_models_get_no_gradients_and_do_not_move(
    estimator: str, student_folder: Path, teacher_folder: Path, llama_folder: Path
) -> None:
    teachers = {
        "a": {"model": str(teacher_folder)},
        "b": {"model": str(llama_folder), "reward_scale": 1.0},
        "self": {"model": str(student_folder), "view": SOLUTION},
    }
    recipe = opd_recipe(student_folder, teachers, objective={"estimator": estimator})
    bench = Bench.of(recipe)
    weights = [p.clone() for m in bench.scorer.models for p in m.module.parameters()]
    own = [p.detach().clone() for p in bench.student.module.parameters()]
    bench.update(make_rollouts(recipe, bench.student, ["a", "b", "self"]))
    frozen = [p for m in bench.scorer.models for p in m.module.parameters()]
    assert not any(p.requires_grad or p.grad is not None for p in frozen)
    assert all(torch.equal(p, w) for p, w in zip(frozen, weights, strict=True))
    assert not any(torch.equal(p, w) for p, w in zip(bench.student.module.parameters(), own, strict=True))
    assert all(p.grad is None for p in bench.learner.parameters.values()), "no memory held while sampling"
    assert not {p.data_ptr() for p in frozen} & {p.data_ptr() for p in bench.learner.parameters.values()}
    assert not any(m.module.training for m in [*bench.scorer.models, bench.student])


# --- what they say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 150, 10_000])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_are_transformers_own_log_probs_of_each_view(
    temperature: float,
    budget: int,
    student_folder: Path,
    teacher_folder: Path,
    llama_folder: Path,
    reference_folder: Path,
) -> None:
    """Prompts are rendered anew per view, for teacher and reference each; response ids stay. Own λ, own base."""
    teachers: dict[str, dict[str, Any]] = {
        "hinted": {"model": str(teacher_folder), "view": SOLUTION, "reward_scale": 2.0},
        "based": {
            "model": str(llama_folder),
            "reward_scale": 0.5,
            "reference": {"model": str(teacher_folder), "view": {"suffix": " now"}},
        },
    }
    recipe = opd_recipe(
        student_folder,
        teachers,
        student={"view": {"suffix": " go"}},
        reference={"model": str(reference_folder)},
        train={"tokens_per_micro_batch": budget},
    )
    seen_as = {
        "hinted": (teacher_folder, View(**SOLUTION), reference_folder, View(suffix=" go")),
        "based": (llama_folder, View(suffix=" go"), teacher_folder, View(suffix=" now")),
    }
    rollouts = rollouts_of(recipe, ["hinted", "based"])
    scorer = scorer_of(recipe)
    scores = scorer.score(rollouts, temperature=temperature)
    for rollout, score in zip(rollouts, scores, strict=True):
        assert rollout.prompt.route is not None
        teacher, teacher_view, reference, reference_view = seen_as[rollout.prompt.route]
        tokenizer = scorer.routes[rollout.prompt.route].teacher.model.tokenizer
        ids = [views.render(v, [rollout.prompt], tokenizer)[0] for v in (teacher_view, reference_view)]
        assert ids != [rollout.prompt_ids] * 2
        theirs, theirs_V = picked(teacher, rollout, ids[0], temperature)
        base, base_V = picked(reference, rollout, ids[1], temperature)
        partition = (score.reward_scale * theirs_V + (1 - score.reward_scale) * base_V).exp().sum(-1).log()
        found = (score.teacher_logprobs_R, score.reference_logprobs_R, score.log_partition_R)
        assert_rows(found, (theirs, base, partition))
        assert score.hidden is None


def test_hidden_states_and_heads_give_the_same_log_probs(
    student_folder: Path, teacher_folder: Path, llama_folder: Path
) -> None:
    teachers = {"a": {"model": str(teacher_folder)}, "b": {"model": str(llama_folder), "reward_scale": 1.0}}
    recipe = opd_recipe(student_folder, teachers)
    scorer, rollouts = scorer_of(recipe), rollouts_of(recipe, ["a", "b"])
    hidden = scorer.score(rollouts, temperature=1.0, keep_hidden=True)
    plain = scorer.score(rollouts, temperature=1.0)
    for rollout, mine, theirs in zip(rollouts, hidden, plain, strict=True):
        teacher_head, reference_head = scorer.heads(mine.route)
        assert mine.hidden is not None
        teacher_RD, reference_RD = mine.hidden.states()
        sides = [
            (teacher_RD, teacher_head, theirs.teacher_logprobs_R),
            (reference_RD, reference_head, theirs.reference_logprobs_R),
        ]
        for side_RD, head_VD, expected in sides:
            assert (side_RD is None) == (head_VD is None) == (expected is None)
            if side_RD is not None and head_VD is not None and expected is not None:
                whole = (side_RD @ head_VD.T).log_softmax(-1)
                assert_rows([whole.gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0]], [expected])
        assert mine.teacher_logprobs_R is None


def test_a_row_is_scored_the_same_whoever_is_beside_it(
    student_folder: Path, teacher_folder: Path, llama_folder: Path
) -> None:
    teachers = {"a": {"model": str(teacher_folder)}, "b": {"model": str(llama_folder)}}
    recipe = opd_recipe(student_folder, teachers)
    scorer, rollouts = scorer_of(recipe), rollouts_of(recipe, ["a", "b"])
    together = scorer.score(rollouts, temperature=1.0)
    backwards = scorer.score(rollouts[::-1], temperature=1.0)[::-1]
    for rollout, one, other in zip(rollouts, together, backwards, strict=True):
        (alone,) = scorer.score([rollout], temperature=1.0)
        for score in (other, alone):
            assert_same(score, one)


def assert_same(one: Scores, other: Scores) -> None:
    assert one.route == other.route
    for name in ("teacher_logprobs_R", "reference_logprobs_R", "log_partition_R"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=1e-5)


# --- LoRA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["sampled", "full"])
def test_with_lora_the_reference_is_the_student_with_adapters_off(
    estimator: str, student_folder: Path, teacher_folder: Path
) -> None:
    recipe = opd_recipe(
        student_folder,
        {"only": {"model": str(teacher_folder)}},
        student={"lora": {"rank": 4, "alpha": 8.0}},
        optim={"lr": 0.02},
        objective={"estimator": estimator},
    )
    bench = Bench.of(recipe)
    reference = bench.scorer.routes["only"].reference
    assert reference is not None and reference.model is bench.student
    assert len(bench.scorer.models) == 1
    rollouts = make_rollouts(recipe, bench.student, ["only"])
    trained = list(bench.learner.parameters)
    assert trained and all(".lora_" in name for name in trained)
    before = [p.detach().clone() for p in bench.student.module.parameters() if not p.requires_grad]
    first = [bench.update(rollouts) for _ in range(3)][-1]
    after = [p.detach() for p in bench.student.module.parameters() if not p.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    scores = bench.scorer.score(rollouts, temperature=1.0)
    initial = [picked(student_folder, r, r.prompt_ids, 1.0)[0] for r in rollouts]
    assert_rows([s.reference_logprobs_R for s in scores], initial)
    assert_rows([r.scores.reference_logprobs_R for r in first.reports], initial)
    moved = torch.cat([r.student_logprobs_R for r in first.reports]) - torch.cat(initial)
    assert float(moved.abs().max()) > 0.05, "adapters are on again for the student"
    assert all(p.requires_grad for p in bench.learner.parameters.values())


def test_adapter_dropout_reaches_neither_scores_nor_sampling(
    student_folder: Path, teacher_folder: Path
) -> None:
    recipe = opd_recipe(
        student_folder, {"only": {"model": str(teacher_folder)}}, student={"lora": {"dropout": 0.5}}
    )
    bench = Bench.of(recipe)
    assert not any(m.training for m in bench.student.module.modules())
    bench.update(make_rollouts(recipe, bench.student, ["only"]))
    assert not any(m.training for m in bench.student.module.modules())
