"""The trained student as a plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from gopd.files import atomic_folder
from gopd.roles import Learner


def export_student(learner: Learner, tokenizer: PreTrainedTokenizerBase, card: str, folder: Path) -> None:
    """Writes float32 safetensors, tokenizer, generation config and a model card; the folder appears whole or not.

    Call this when training is over. Raises RunFailed when the disk refuses.
    """
    with atomic_folder(folder) as target:
        learner.export(target)
        tokenizer.save_pretrained(target)
        (target / "README.md").write_text(card, encoding="utf-8")
