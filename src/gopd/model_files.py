"""What a model's folder holds, looked at before Transformers reads it.

No pickle is read, no file outside the folder, and no weights are made up in sizes that the files do not have.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from gopd.errors import BadInput

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SLACK = 4
"""Layers may share their weights; by so much may those of a configuration be more than those in the files."""


def check_files(source: str, revision: str | None, config: PreTrainedConfig, about: str) -> None:
    """Raises BadInput, starting with `about`, where a model folder or Hub name has no weights that may be read.

    Of a Hub name only the index is looked at, as the weights are not here yet.
    """
    if named := config.to_dict().get("transformers_weights"):
        raise BadInput(
            f"{about}: config.json names {named!r} as its weights; only {WEIGHTS} and {INDEX} are read"
        )
    files = _files(source, revision, about)
    folder = Path(source)
    if not folder.is_dir():
        return
    present = [folder / name for name in files if (folder / name).is_file()]
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if not present and pickled:
        raise BadInput(
            f"{about}: its weights are pickled ({pickled[0]}), which can run any code and is never read; if you trust "
            "them, load them with Transformers and write them again by save_pretrained, which gives safetensors"
        )
    _check_sizes(config.get_text_config().to_dict(), present, about)


def _files(source: str, revision: str | None, about: str) -> list[str]:
    """The names of the files with weights, as the index has them. Raises BadInput where it names other files."""
    index = cached_file(
        source,
        INDEX,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if index is None or (Path(source) / WEIGHTS).is_file():  # as Transformers chooses
        return [WEIGHTS]
    names = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise BadInput(
                f"{about}: {INDEX} names {name!r}; weights are read from *.safetensors beside it only"
            )
    return names


def _check_sizes(sizes: dict[str, Any], files: list[Path], about: str) -> None:
    """Transformers makes up what a configuration has beyond the files, however much memory that takes."""
    if not files:
        return
    tensors, numbers = 0, 0
    for path in files:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                if (
                    name.endswith(".weight")
                    and part.get_dtype()[0] in "IU"
                    and "quantization_config" not in sizes
                ):
                    raise BadInput(
                        f"{about}: {name} holds whole numbers ({part.get_dtype()}); weights are floats"
                    )
                tensors += 1
                numbers += math.prod(part.get_shape())
    products = (
        ("vocab_size", "hidden_size"),
        ("num_hidden_layers", "hidden_size", "intermediate_size"),
        ("hidden_size", "num_attention_heads", "head_dim"),
    )
    for keys in products:
        factors = [factor for key in keys if type(factor := sizes.get(key)) is int]
        wanted = math.prod(factors) if len(factors) == len(keys) else 0
        if wanted > SLACK * numbers:
            raise BadInput(
                f"{about}: config.json asks for {' × '.join(keys)} = {wanted:,} weights, the files hold {numbers:,}; "
                "they do not belong together"
            )
    layers = sizes.get("num_hidden_layers")
    if type(layers) is int and layers > SLACK * tensors:
        raise BadInput(
            f"{about}: config.json asks for {layers:,} layers, the files hold {tensors:,} tensors; they do not belong "
            "together"
        )
