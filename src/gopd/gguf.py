"""GGUF in, plain Hugging Face folder out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from gopd.errors import BadInput
from gopd.files import atomic_folder

QUANTIZATION_MARKS = ("hf_quantizer", "is_quantized", "quantization_method")


def import_gguf(file: str | Path, folder: str | Path) -> None:
    """Writes a float32 safetensors copy of a GGUF model, with tokenizer and generation config, into a new folder.

    Quantised weights are dequantised once, so the copy computes what the file stands for. Raises BadInput when
    the file is missing, is not GGUF of an architecture that Transformers reads, or the folder exists.
    """
    file, folder = Path(file), Path(folder)
    if importlib.util.find_spec("gguf") is None:
        raise BadInput("reading GGUF needs the gguf package: pip install gopd[gguf]")
    if not file.is_file():
        raise BadInput(f"no file at {file}")
    if not _starts_as_gguf(file):
        raise BadInput(f"{file} is not a GGUF file")
    if folder.exists():
        raise BadInput(f"{folder} exists; give a new folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        both: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.float32,
            output_loading_info=True,
            trust_remote_code=False,  # None would ask on the terminal
        )
        model, loaded = both
    except Exception as error:  # a damaged file makes the readers raise anything
        raise BadInput(
            f"{file}: Transformers cannot read it: {' '.join(str(error).split())[:300]}"
        ) from error
    if wrong := sorted({*loaded["missing_keys"], *_misshapen(model)}):
        raise BadInput(
            f"{file}: {len(wrong)} tensors are missing or not of the shape that Transformers expects of this "
            f"architecture, the first is {wrong[0]}"
        )
    for mark in QUANTIZATION_MARKS:
        vars(model).pop(mark, None)
    vars(model.config).pop("quantization_config", None)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as target:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _misshapen(model: PreTrainedModel) -> list[str]:
    """Weights whose shape is not what the configuration says: Transformers takes them in without a word."""
    with torch.device("meta"):
        expected = AutoModelForCausalLM.from_config(model.config).state_dict()
    return [name for name, weight in model.state_dict().items() if weight.shape != expected[name].shape]


def _starts_as_gguf(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"GGUF"
