"""The trained student as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from gopd.files import atomic_folder
from gopd.recipe import AnyRecipe, OpdRecipe
from gopd.recipe_file import resolved_yaml
from gopd.roles import Learner
from gopd.validate import Validation


def export_student(learner: Learner, tokenizer: PreTrainedTokenizerBase, card: str, folder: Path) -> None:
    """Writes float32 safetensors, tokenizer, generation config and a model card; the folder appears whole or not.

    Call this when training is over. Raises RunFailed when the disk refuses.
    """
    with atomic_folder(folder) as target:
        learner.export(target)
        tokenizer.save_pretrained(target)
        (target / "README.md").write_text(card, encoding="utf-8")


def model_card(recipe: AnyRecipe, step: int, last: Validation | None) -> str:
    """What the student is, from what it was made, how it measured, and the whole recipe."""
    lines = ["---", "library_name: transformers", "tags: [on-policy-distillation, gopd]", "---", ""]
    lines += [
        f"# {recipe.tracking.name}",
        "",
        f"`{recipe.student.model}` after {step} steps of gopd `{recipe.method}`.",
    ]
    if isinstance(recipe, OpdRecipe):
        lines += ["", "| teacher | model | reward scale λ |", "|---|---|---|"]
        lines += [f"| {n} | {t.model} | {recipe.reward_scale(n):g} |" for n, t in recipe.teachers.items()]
    if last is not None:
        lines += [
            "",
            f"Validation after step {last.step}:",
            "",
            "| domain | problems | accuracy | 95% interval |",
        ]
        lines += ["|---|---|---|---|"]
        for name, domain in last.domains.items():
            if domain.accuracy is not None:
                lines += [
                    f"| {name} | {domain.problems} | {domain.accuracy:.3f} | {domain.low:.3f} to {domain.high:.3f} |"
                ]
    lines += ["", "## Recipe", "", "```yaml", resolved_yaml(recipe).rstrip(), "```", ""]
    return "\n".join(lines)
