"""Checkpoints in, one checkpoint out: their average, or the extrapolation from a base beyond it (ExPO)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gopd.card import merge_card
from gopd.errors import BadInput
from gopd.files import atomic_folder
from gopd.model import load_config, load_tokenizer, model_source
from gopd.sections import ModelSpec
from gopd.views import check_same_vocabulary

INDEX = "model.safetensors.index.json"
WEIGHTS = "*.safetensors"
Progress = Callable[[int, int], None]
"""Called with (tensors finished, tensors in all)."""


def merge(
    models: Sequence[str],
    folder: str | Path,
    *,
    base: str | None = None,
    alpha: float = 0.0,
    progress: Progress = lambda done, total: None,
) -> None:
    """Writes θ + α(θ − θ_base) into a new folder, where θ is the average of the models' weights.

    α = 0 is the average alone, and then no base is needed; α > 0 is ExPO (Zheng et al. 2024, arXiv 2404.16792, their
    Eq. 2), of one model or of several. Sums run in float32 (or wider, as the weights are), tensor by tensor and file by
    file as the first model has them, so no more than one file's weights are in memory. dtype, configuration and
    tokenizer are the first model's. Raises BadInput when the models' kinds, vocabularies, names or shapes differ, when
    the folder exists, or when α and the base do not go together.
    """
    folder = Path(folder)
    if folder.exists():
        raise BadInput(f"{folder} exists; give a new folder")
    if (base is None) != (alpha == 0):
        raise BadInput(
            "extrapolation needs both: a base, and an alpha other than 0; for an average give neither"
        )
    if len(models) == 1 and base is None:
        raise BadInput("one model and no base: nothing to merge; give more models, or a base and an alpha")
    names = [*models, *([] if base is None else [base])]
    folders = [_folder(name) for name in names]
    _check_kinds(names, folders)
    with ExitStack() as stack:
        checkpoints = [stack.enter_context(_Checkpoint(n, f)) for n, f in zip(names, folders, strict=True)]
        first, *others = checkpoints
        for other in others:
            first.check_same(other)
        factors = [(1 + alpha) / len(models)] * len(models) + [-alpha] * (base is not None)
        done = 0
        with atomic_folder(folder) as target:
            for file, tensors in first.files.items():
                merged = {}
                for name in tensors:
                    merged[name] = _weighted(factors, [c.tensor(name) for c in checkpoints])
                    done += 1
                    progress(done, len(first.where))
                save_file(merged, target / file, metadata={"format": "pt"})
            _copy_rest(folders[0], target)
            (target / "README.md").write_text(merge_card(models, base, alpha), encoding="utf-8")


class _Checkpoint:
    """The safetensors files of a folder, open. `where` says which file has a tensor, `files` the reverse."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.files: dict[str, list[str]] = {}
        self._open: dict[str, Any] = {}
        self._stack = ExitStack()
        paths = sorted(folder.glob(WEIGHTS))
        if not paths:
            raise BadInput(f"{name}: no safetensors weights in {folder}")
        try:
            for path in paths:
                opened = self._stack.enter_context(safe_open(path, framework="pt"))
                self.files[path.name], self._open[path.name] = sorted(opened.keys()), opened
        except SafetensorError as error:
            raise BadInput(f"{name}: {path} cannot be read: {error}") from error
        self.where = {tensor: file for file, tensors in self.files.items() for tensor in tensors}

    def __enter__(self) -> _Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def tensor(self, name: str) -> Tensor:
        found: Tensor = self._open[self.where[name]].get_tensor(name)
        return found

    def shape(self, name: str) -> list[int]:
        found: list[int] = self._open[self.where[name]].get_slice(name).get_shape()
        return found

    def check_same(self, other: _Checkpoint) -> None:
        """BadInput with the first tensor that only one of them has, or that has another shape."""
        for tensor in sorted(self.where.keys() | other.where.keys()):
            for one, two in ((self, other), (other, self)):
                if tensor not in one.where:
                    raise BadInput(
                        f"{two.name} has a tensor {tensor}, {one.name} has none; they cannot be merged"
                    )
            mine, theirs = self.shape(tensor), other.shape(tensor)
            if mine != theirs:
                raise BadInput(
                    f"{tensor} has shape {mine} in {self.name} and {theirs} in {other.name}; they cannot be merged"
                )


def _weighted(factors: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    """Σ factor · tensor in the first one's dtype; what is not floating-point stays the first one's."""
    first = tensors[0]
    if not first.is_floating_point():
        return first.clone()
    wide = torch.promote_types(first.dtype, torch.float32)
    total = torch.zeros_like(first, dtype=wide)
    for factor, tensor in zip(factors, tensors, strict=True):
        total.add_(tensor.to(wide), alpha=factor)
    return total.to(first.dtype)


def _folder(name: str) -> Path:
    """A local folder with the model's files; one from the Hub is downloaded."""
    source = model_source(ModelSpec(model=name), name)
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(
            snapshot_download(source, allow_patterns=[WEIGHTS, "*.json", "*.jinja", "*.txt", "*.model"])
        )
    except OSError as error:
        raise BadInput(f"{name}: cannot be had from the Hub: {' '.join(str(error).split())[:300]}") from error


def _check_kinds(names: Sequence[str], folders: Sequence[Path]) -> None:
    specs = {n: ModelSpec(model=str(f)) for n, f in zip(names, folders, strict=True)}
    kinds = {name: load_config(spec, name).architectures for name, spec in specs.items()}
    tokenizers = {name: load_tokenizer(spec, name) for name, spec in specs.items()}
    (first, kind), *others = kinds.items()
    for name, other in others:
        if other != kind:
            raise BadInput(f"{first} is a {_listed(kind)}, {name} a {_listed(other)}; they cannot be merged")
    check_same_vocabulary(tokenizers)


def _listed(architectures: Sequence[str] | None) -> str:
    return ", ".join(architectures or ["model of no known kind"])


def _copy_rest(source: Path, target: Path) -> None:
    """Configuration, tokenizer and the index of the weights, as they are."""
    for path in _rest(source):
        shutil.copyfile(path, target / path.name)


def _rest(source: Path) -> Iterator[Path]:
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in (".json", ".jinja", ".txt", ".model"):
            yield path
