"""Every shipped recipe parses, and runs for a step with tiny models in place of big ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gopd
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
