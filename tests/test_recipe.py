"""Recipes: published defaults, strictness, overrides, and a resolved copy that says the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import gopd
from gopd.errors import BadInput
from gopd.recipe import AnyRecipe, OpdRecipe
from gopd.recipe_file import differences, load_recipe, resolved_yaml

LEAST = """
student: {model: s}
teachers: {math: {model: t}}
data: {files: [rows.jsonl]}
train: {steps: 50}
"""


def load(tmp_path: Path, *overrides: str, text: str = LEAST) -> AnyRecipe:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def opd(tmp_path: Path, *overrides: str, text: str = LEAST) -> OpdRecipe:
    recipe = load(tmp_path, *overrides, text=text)
    assert isinstance(recipe, OpdRecipe)
    return recipe


def refusal(tmp_path: Path, *overrides: str, text: str = LEAST) -> str:
    with pytest.raises(BadInput) as error:
        load(tmp_path, *overrides, text=text)
    return str(error.value)


def test_defaults_are_the_published_method(tmp_path: Path) -> None:
    recipe = opd(tmp_path)
    optim = recipe.optim
    assert (optim.lr, optim.betas, optim.weight_decay, optim.grad_clip) == (1e-5, (0.9, 0.999), 0.01, 1.0)
    assert (optim.schedule, optim.warmup_steps) == ("constant", 0)
    assert (recipe.train.prompts_per_step, recipe.train.mini_batches) == (1024, 1)
    assert (recipe.data.max_prompt_tokens, recipe.data.max_response_tokens) == (2048, 16384)
    assert recipe.sampler.samples_per_prompt == 1
    for sampling in (recipe.sampler, opd(tmp_path, "validation.files=[v.jsonl]").validation.sampling):  # type: ignore[union-attr]
        assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    objective = recipe.objective
    assert (objective.estimator, objective.reward_scale) == ("sampled", 1.25)
    assert objective.aggregation == "seq-mean-token-mean"
    assert (objective.control_variate, objective.reward_weight) == (False, 0.0)
    correction = recipe.correction
    assert (correction.mode, correction.level, correction.cap) == ("auto", "token", 5.0)
    assert correction.beyond == "truncate"
    columns = recipe.data.columns
    assert (columns.prompt, columns.data_source) == ("prompt", "data_source")
    assert (columns.ground_truth, columns.route) == ("reward_model.ground_truth", "extra_info.opd_teacher")
    assert recipe.reference is None and recipe.student.lora is None
    assert recipe.tracking.name == "mine"
    assert not recipe.student.trust_remote_code


def test_recipes_are_frozen_at_every_depth(tmp_path: Path) -> None:
    recipe = opd(tmp_path)
    for section in (recipe.train, recipe.student.view, recipe.teachers["math"]):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, next(iter(type(section).model_fields)), 7)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("optim.lr=1e-4", 1e-4),
        ("optim.lr=2E-3", 2e-3),
        ("optim.lr=.5e-3", 5e-4),
        ("optim.lr=1", 1.0),
        ("data.files=[a.jsonl, b.parquet]", ("a.jsonl", "b.parquet")),
        ("optim.betas=[0.5, 0.6]", (0.5, 0.6)),
        ("tracking.name=a=b", "a=b"),
        ("student.view.suffix=' in \\boxed{}.'", " in \\boxed{}."),
        ("student.view.enable_thinking=false", False),
        ("data.hub=null", None),
        ("student.lora.rank=4", 4),
    ],
)
def test_overrides_are_yaml_values(tmp_path: Path, override: str, value: Any) -> None:
    found: Any = opd(tmp_path, override)
    for name in override.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_overrides_take_a_section_away_and_add_teachers(tmp_path: Path) -> None:
    text = LEAST + "reference: {model: r}\noptim:\n"
    recipe = opd(
        tmp_path,
        "reference=null",
        "teachers.code.model=c",
        "teachers.code.reward_scale=1",
        "optim.lr=1e-3",
        text=text,
    )
    assert recipe.reference is None
    assert list(recipe.teachers) == ["math", "code"] and recipe.teachers["code"].model == "c"
    assert (recipe.reward_scale("math"), recipe.reward_scale("code")) == (1.25, 1.0)


def test_later_overrides_win(tmp_path: Path) -> None:
    assert load(tmp_path, "train.steps=1", "train.steps=2").train.steps == 2


@pytest.mark.parametrize(
    ("override", "known"),
    [
        ("trainn=1", "train?"),
        ("objective.reward_scal=1", "objective.reward_scale?"),
        ("teachers.math.modle=x", "teachers.math.model?"),
        ("teachers.new.view.sufix=x", "teachers.new.view.suffix?"),
        ("teachers.math.reference.view.sytem=x", "teachers.math.reference.view.system?"),
        ("student.lora.rnk=1", "student.lora.rank?"),
        ("validation.sampling.temp=1", "validation.sampling.temperature?"),
        ("data.columns.promt=x", "data.columns.prompt?"),
        ("train.qqqq=1", "known: steps, epochs, "),
    ],
)
def test_an_unknown_key_names_the_nearest_at_every_depth(tmp_path: Path, override: str, known: str) -> None:
    message = refusal(tmp_path, override)
    assert f"unknown key {override.partition('=')[0]}; " in message and known in message


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (["sampler.engine=vllm"], "with train.max_staleness 0 nothing new comes"),
        (["train.max_staleness=1"], "sampler.engine is torch; set it to vllm"),
        (["sampler.engine=vllm", "train.max_staleness=1", "sampler.vllm.sleep=true"], "take turns with it"),
    ],
)
def test_updates_in_flight_need_vllm_awake_and_ahead(
    tmp_path: Path, others: list[str], expected: str
) -> None:
    assert expected in refusal(tmp_path, "sampler.vllm.in_flight_updates=true", *others)


def test_all_unknown_keys_are_named_at_once(tmp_path: Path) -> None:
    message = refusal(tmp_path, "train.stepz=1", "optim.lrr=1")
    assert "train.stepz" in message and "optim.lrr" in message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps=many", "train.steps: Input should be a valid integer"),
        ("train.steps=3.0", "train.steps: Input should be a valid integer"),
        ("train.steps=true", "train.steps: Input should be a valid integer"),
        ("optim.lr='1e-5'", "optim.lr: Input should be a valid number"),
        ("optim.lr=.inf", "optim.lr: Input should be a finite number"),
        ("optim.lr=0", "optim.lr: Input should be greater than 0"),
        ("optim.betas=[2, 0.9]", "optim.betas.0: Input should be less than 1"),
        ("data.files=x.jsonl", "data.files: "),
        ("teachers.math=t", "teachers.math: "),
        ("teachers={}", "teachers: "),
        ("student=null", "student: "),
        ("tracking.name=7", "tracking.name: Input should be a valid string"),
        ("tracking.trackers=[excel]", "tracking.trackers.0: Input should be 'tensorboard'"),
        ("objective.estimator=best", "objective.estimator: Input should be 'sampled'"),
        ("objective.reward_scale=-0.1", "objective.reward_scale: Input should be greater than or equal to 0"),
        (
            "teachers.math.reward_scale=-.5",
            "teachers.math.reward_scale: Input should be greater than or equal",
        ),
        ("objective.reward_scale=.nan", "objective.reward_scale: "),
        ("train.seed=-1", "train.seed: "),
        ("train.seed=18446744073709551616", "train.seed: "),
        ("train.epochs=1", "one of train.steps and train.epochs"),
        ("train.steps=null", "one of train.steps and train.epochs"),
        ("train.mini_batches=3", "multiple of mini_batches"),
        ("checkpoint.keep_best=true", "keep_best needs a validation"),
        ("method=rlhf", "unknown method 'rlhf'; known: opd, grpo, sft"),
        ("method=[opd]", "unknown method ['opd']"),
        ("method=sft", "unknown key teachers"),
        ("tracking.name=2020-01-01", "date"),
        ("train.steps", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("train.steps.more=3", "'steps' is a value, not a section"),
        ("optim.lr=[1", "not valid YAML"),
    ],
)
def test_impossible_values_are_named(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, override)


@pytest.mark.parametrize("key", ["control_variate=true", "reward_weight=0.5"])
@pytest.mark.parametrize("estimator", ["full", "topk"])
def test_what_only_the_sampled_estimator_has_is_refused_elsewhere(
    tmp_path: Path, key: str, estimator: str
) -> None:
    overrides = ("sampler.samples_per_prompt=2", f"objective.{key}")
    opd(tmp_path, *overrides)
    assert "estimator 'sampled'" in refusal(tmp_path, *overrides, f"objective.estimator={estimator}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected sections"),
        ("- a", "expected sections"),
        ("a: [", "not valid YAML"),
        (LEAST + "train: {steps: 4}\n", "key 'train' appears twice"),
        (LEAST.replace("steps: 50", "steps: 50, steps: 51"), "key 'steps' appears twice"),
        (LEAST + "optim: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
        (LEAST + "tracking: &a {name: *a}\n", "without end"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, expected: str) -> None:
    message = refusal(tmp_path, text=text)
    assert expected in message and "mine.yaml" in message


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml: No such file"):
        load_recipe(tmp_path / "nowhere.yaml")
    with pytest.raises(BadInput, match="Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match=r"binary\.yaml: expected YAML in UTF-8"):
        load_recipe(tmp_path / "binary.yaml")


def test_the_resolved_copy_loads_back_equal(tmp_path: Path) -> None:
    full = (
        "teachers.math.reference.model=b",
        "teachers.math.view.suffix='ä: {x}\\n'",
        "teachers.code={model: c, reward_scale: 0.5}",
        "reference.model=r",
        "reference.view.chat_template_kwargs={a: [1, null]}",
        "student.lora.target_modules=[q_proj, v_proj]",
        "validation.files=[v.jsonl]",
        "tracking.trackers=[tensorboard]",
        "optim.lr=1e-7",
    )
    recipe = opd(tmp_path, *full)
    for one in (recipe, opd(tmp_path), load(tmp_path, text=sft_text())):
        copy = tmp_path / "recipe.yaml"
        copy.write_text(resolved_yaml(one), encoding="utf-8")
        again = load_recipe(copy)
        assert again == one and differences(one, again) == []
    assert recipe.reference_of("math").model == "b" and recipe.reference_of("code").model == "r"  # type: ignore[union-attr]


def sft_text() -> str:
    return "method: sft\nstudent: {model: s}\ndata: {files: [rows.jsonl]}\ntrain: {epochs: 2}\n"


def test_differences_name_changed_new_and_missing_values(tmp_path: Path) -> None:
    before = opd(tmp_path)
    after = opd(tmp_path, "optim.lr=1e-3", "teachers.code.model=c", "student.lora.rank=4")
    found = differences(before, after)
    assert "optim.lr: 1e-05 → 0.001" in found
    assert "teachers.code.model: (absent) → c" in found
    assert "student.lora: None → (absent)" in found and "student.lora.rank: (absent) → 4" in found
    assert differences(before, opd(tmp_path)) == []


def test_the_package_offers_loading_and_training(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(LEAST, encoding="utf-8")
    assert gopd.load_recipe(path, ["train.steps=2"]) == load_recipe(path, ["train.steps=2"])
    assert callable(gopd.train)


def test_importing_recipes_imports_no_torch() -> None:
    script = "import sys, gopd, gopd.recipe, gopd.cli; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
