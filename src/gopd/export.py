"""The trained student as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel

from gopd.files import atomic_folder
from gopd.model import LanguageModel
from gopd.recipe import AnyRecipe, OpdRecipe
from gopd.recipe_file import resolved_yaml
from gopd.validate import Validation


def export_student(
    student: LanguageModel, recipe: AnyRecipe, folder: Path, step: int, last: Validation | None
) -> None:
    """Writes float32 safetensors, tokenizer, generation config and a model card; LoRA is merged into the weights.

    After a merge the student has no adapters any more: call this when training is over. The folder appears whole
    or not at all. Raises RunFailed when the disk refuses.
    """
    if student.adapters is not None:
        student.module = student.adapters.merge_and_unload()
        student.adapters = None
    with atomic_folder(folder) as target:
        _save_module(student.module, target)
        student.tokenizer.save_pretrained(target)
        (target / "README.md").write_text(model_card(recipe, step, last), encoding="utf-8")


def _save_module(module: PreTrainedModel, target: Path) -> None:
    """`save_pretrained`, with the generation config as it came: Transformers refuses to write many a published one."""
    generation = module.generation_config
    module.generation_config = GenerationConfig()
    module.save_pretrained(target)
    module.generation_config = generation
    if generation is not None:
        generation.to_json_file(target / "generation_config.json")


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
