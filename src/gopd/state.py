"""A learner's weights and optimizer state on disk: safetensors, whole or a part per rank, for any number of ranks."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer
from transformers import GenerationConfig

from gopd.errors import RunFailed
from gopd.model import LanguageModel
from gopd.sharding import Ranks


def save_state(folder: Path, parameters: Mapping[str, Tensor], optimizer: Optimizer, ranks: Ranks) -> None:
    """Writes all into an empty folder; several ranks, which must all call this, write a part each."""
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    moments = {
        _key(name, moment): value
        for name, parameter in parameters.items()
        for moment, value in optimizer.state[parameter].items()
    }
    if ranks.mesh is None:
        for file, tensors in (("weights", weights), ("optimizer", moments)):
            save_file({n: t.contiguous() for n, t in tensors.items()}, folder / f"{file}.safetensors")
        return
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(weights | moments, storage_writer=writer)
    except CheckpointException as error:
        first, _ = next(iter(error.failures.values()))
        raise RunFailed(f"cannot write {folder}: {first}; nothing that was saved before is lost") from error


@torch.no_grad()
def load_state(folder: Path, parameters: Mapping[str, Tensor], optimizer: Optimizer, ranks: Ranks) -> None:
    """Takes up what `save_state` wrote, by however many ranks; values are copied in place, bit for bit."""
    reader = HuggingFaceStorageReader(str(folder))
    saved = reader.read_metadata().state_dict_metadata
    wanted = {name: parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        moments = {"step": torch.zeros((), device=parameter.device)}
        moments |= {moment: torch.zeros_like(parameter) for moment in ("exp_avg", "exp_avg_sq")}
        known = {moment: value for moment, value in moments.items() if _key(name, moment) in saved}
        if known:  # none before its first step
            optimizer.state[parameter] = known
        wanted |= {_key(name, moment): value for moment, value in known.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as it should be for one process
        load(wanted, storage_reader=reader, no_dist=ranks.mesh is None)


def export_model(student: LanguageModel, ranks: Ranks, target: Path) -> None:
    """`save_pretrained`, with the generation config as it came: Transformers refuses to write many a published one.

    Adapters are merged into the weights for good. Ranks that share the student must all call this; the first gathers
    the weights, tensor by tensor, into the one full copy there is, and writes.
    """
    module, gathered = student.module, None
    if ranks.mesh is not None:
        weights = ((name, weight.cpu()) for name, weight in student.weights())
        gathered = {name: weight for name, weight in weights if ranks.rank == 0}
        if ranks.rank != 0:
            return
    elif student.adapters is not None:
        module = student.module = student.adapters.merge_and_unload()
        student.adapters = None
    generation = module.generation_config
    module.generation_config = GenerationConfig()
    module.save_pretrained(target, state_dict=gathered)
    module.generation_config = generation
    if generation is not None:
        generation.to_json_file(target / "generation_config.json")


def _key(name: str, moment: str) -> str:
    return f"{name}:{moment}"
