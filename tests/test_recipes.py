"""Every shipped recipe parses, and runs for a step with tiny models in place of big ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gopd
from gopd.recipe import OpdRecipe
from gopd.recipe_file import parse_recipe, resolved_yaml
from gopd.tracking import read_metrics

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted([*ROOT.glob("recipes/**/*.yaml"), *ROOT.glob("experiments/*/*.yaml")])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_it_parses(path: Path) -> None:
    recipe = gopd.load_recipe(path)
    assert recipe.tracking.name == path.stem
    assert "steps:" in resolved_yaml(recipe)


def test_quickstart_runs_as_it_is_but_shorter(tmp_path: Path) -> None:
    overrides = [
        "train.steps=1",
        "train.prompts_per_step=8",
        "validation.limit=8",
        f"tracking.folder={tmp_path}",
    ]
    run = gopd.train(gopd.load_recipe(ROOT / "recipes/quickstart.yaml", overrides))
    (entry,) = read_metrics(run / "metrics.jsonl")
    assert {"teacher/math/advantage_mean", "teacher/code/advantage_mean", "kl_to_target"} <= entry.keys()
    models = [e["model"] for e in read_metrics(run / "validation.jsonl")]
    assert models == ["student", "teacher math", "teacher code", "student"]


def test_tiny_grpo_runs_as_it_is_but_shorter(tmp_path: Path) -> None:
    overrides = [
        "train.steps=1",
        "train.prompts_per_step=8",
        "validation.limit=8",
        f"tracking.folder={tmp_path}",
    ]
    run = gopd.train(gopd.load_recipe(ROOT / "recipes/tiny-grpo.yaml", overrides))
    (entry,) = read_metrics(run / "metrics.jsonl")
    assert 0 < entry["reward/tiny/arithmetic"] < 1
    assert entry["groups/uniform"] < 1
    assert entry["grad_norm"] > 0


def test_smollm2_runs_with_a_tiny_model_in_its_place(tmp_path: Path) -> None:
    rows = tmp_path / "gsm8k.jsonl"
    row = {"question": "Ann has 3 pens and buys 4. How many?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}
    rows.write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
    overrides = [
        *("student.model=builtin:base", "teachers.itself.model=builtin:base", "data.max_prompt_tokens=200"),
        *("data.hub=null", f"data.files=[{rows}]", "validation.hub=null", f"validation.files=[{rows}]"),
        *(
            "data.max_response_tokens=8",
            "train.steps=1",
            "train.prompts_per_step=4",
            f"tracking.folder={tmp_path}",
        ),
    ]
    recipe = gopd.load_recipe(ROOT / "recipes/smollm2-gsm8k.yaml", overrides)
    run = gopd.train(recipe)
    (entry,) = read_metrics(run / "metrics.jsonl")
    assert (
        entry["teacher/itself/reference_gap"] != 0
    )  # the worked solution in the teacher's view changes what it says
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe


PAPER = sorted((ROOT / "recipes/paper").glob("*.yaml"))


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_recipes_run_a_step_with_tiny_models(path: Path, tmp_path: Path) -> None:
    published = gopd.load_recipe(path)
    rows = tmp_path / "rows.jsonl"
    routes = list(published.teachers) if isinstance(published, OpdRecipe) else ["none"]
    truth = {"inputs": [[[1]]], "outputs": [[2]], "fn_name": "f"}
    row = {
        "prompt": [{"role": "user", "content": "what is 3+4?"}],
        "response": "7",
        "data_source": "deepmath",
        "reward_model": {"ground_truth": json.dumps(truth) if "code" in path.stem else "7"},
    }
    made = [row | {"extra_info": {"opd_teacher": routes[i % len(routes)]}} for i in range(4)]
    rows.write_text("".join(json.dumps(r) + "\n" for r in made))
    overrides = [
        *(
            "student.model=builtin:base",
            f"data.files=[{rows}]",
            "data.max_response_tokens=8",
            "validation=null",
        ),
        *(
            "data.max_prompt_tokens=200",
            "train.steps=1",
            "train.prompts_per_step=4",
            f"tracking.folder={tmp_path}",
        ),
    ]
    if isinstance(published, OpdRecipe):
        overrides += [f"teachers.{name}.model=builtin:math" for name in routes]
        overrides += ["reference.model=builtin:base"] if published.reference else []
    run = gopd.train(gopd.load_recipe(path, overrides))
    (entry,) = read_metrics(run / "metrics.jsonl")
    assert entry["response_tokens/max"] <= 8
    if isinstance(published, OpdRecipe):
        assert {f"teacher/{name}/reference_gap" for name in routes} <= entry.keys()


def test_the_papers_recipes_are_the_published_settings() -> None:
    recipes = {path.stem: gopd.load_recipe(path) for path in PAPER}
    sizes = {name: (r.train.steps, r.train.prompts_per_step, r.optim.lr) for name, r in recipes.items()}
    assert sizes == {
        "math-single": (50, 1024, 1e-5),
        "code-single": (50, 1024, 1e-5),
        "multi-teacher": (50, 1024, 1e-5),
        "sft": (50, 1024, 1e-5),
        "strong-to-weak-1.7b": (100, 1024, 1e-5),
        "strong-to-weak-4b": (100, 1024, 1e-5),
        "reward-correction": (100, 1024, 1e-5),
        "grpo-math": (500, 128, 1e-6),
        "grpo-code": (300, 128, 1e-6),
    }
