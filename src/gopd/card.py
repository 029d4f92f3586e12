"""Model cards: from what a model was made, how, how it measured, and how to load and cite it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData

from gopd.recipe import AnyRecipe, OpdRecipe
from gopd.rows import BUILTIN
from gopd.validate import Validation

USE = """## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER_OR_HUB_NAME)
tokenizer = AutoTokenizer.from_pretrained(FOLDER_OR_HUB_NAME)
```"""
CITE = """## Citation

Generalized on-policy distillation: Yang et al. 2026, *Learning beyond Teacher: Generalized On-Policy Distillation with
Reward Extrapolation*, [arXiv 2602.12125](https://arxiv.org/abs/2602.12125)."""


def student_card(recipe: AnyRecipe, step: int, last: Validation | None) -> str:
    """The card of a trained student, with the whole recipe. A folder on this machine is named by its last part."""
    student = public_name(recipe.student.model)
    tags = ["gopd", {"opd": "on-policy-distillation"}.get(recipe.method, recipe.method)]
    parts = [
        _metadata([recipe.student.model], "finetune", tags),
        f"# {recipe.tracking.name}\n\n`{student}` after {step} steps of gopd `{recipe.method}`.",
    ]
    if isinstance(recipe, OpdRecipe):
        parts.append(
            _table(
                ("teacher", "model", "reward scale λ"),
                [
                    (n, public_name(t.model), f"{recipe.reward_scale(n):g}")
                    for n, t in recipe.teachers.items()
                ],
            )
        )
    if last is not None:
        rows = [
            (name, str(d.problems), f"{d.accuracy:.3f}", f"{d.low:.3f} to {d.high:.3f}")
            for name, d in last.domains.items()
            if d.accuracy is not None
        ]
        table = _table(("domain", "problems", "accuracy", "95% interval"), rows)
        parts.append(f"Validation after step {last.step}:\n\n{table}")
    text = yaml.safe_dump(_public(recipe.model_dump(mode="json")), sort_keys=False, allow_unicode=True)
    parts += [USE, f"## Recipe\n\n```yaml\n{text.rstrip()}\n```"]
    return "\n\n".join([*parts, *([CITE] if recipe.method == "opd" else [])]) + "\n"


def merge_card(models: Sequence[str], base: str | None, alpha: float) -> str:
    """The card of an average of models, or of what lies beyond it."""
    names = [public_name(model) for model in models]
    made = f"The average of {len(models)} models:" if len(models) > 1 else "From the model:"
    parts = [
        _metadata([*models, *([base] if base is not None else [])], "merge", ["gopd", "merge"]),
        "# Merged by gopd",
        made,
        "\n".join(f"- `{name}`" for name in names),
    ]
    if base is not None:
        parts.append(f"extrapolated from `{public_name(base)}` by α = {alpha:g}: θ + α(θ − θ_base).")
    how = {"models": names, "base": None if base is None else public_name(base), "alpha": alpha}
    return "\n\n".join([*parts, USE, f"```json\n{json.dumps(how)}\n```"]) + "\n"


def public_name(model: str) -> str:
    """A model's name as others may read it: of a folder on this machine only the last part."""
    return model if model.startswith(BUILTIN) or not _is_local(model) else Path(model).name


def _is_local(model: str) -> bool:
    return model.startswith(("/", ".", "~")) or model.count("/") > 1 or Path(model).exists()


def _public(value: Any) -> Any:
    """A recipe's tree with paths of this machine cut to their last part."""
    if isinstance(value, dict):
        return {key: _public(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_public(part) for part in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _metadata(models: Sequence[str], relation: str, tags: Sequence[str]) -> str:
    """What the Hub reads; only models that are there, not folders or builtin ones, are named as bases."""
    bases = [model for model in models if not model.startswith(BUILTIN) and not _is_local(model)]
    known: dict[str, Any] = {"base_model": bases, "base_model_relation": relation} if bases else {}
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=list(tags), **known
    )
    return f"---\n{data.to_yaml()}\n---"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
