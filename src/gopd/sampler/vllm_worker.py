"""What runs inside vLLM's worker processes: new weights, and logits at the sampling temperature.

The only module that imports vLLM at the top; workers load it by its name (`worker_extension_cls`).
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load_file
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "gopd-files"


class WorkerExtension:
    """Methods that vLLM adds to its worker, called by name through `LLM.collective_rpc`."""

    model_runner: Any

    def gopd_prepare(self) -> None:
        """Leaves Ctrl-C to the parent: the first one there lets a step end, which needs this worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def gopd_set_temperature(self, temperature: float) -> None:
        """From here on the model's logits come divided by `temperature`.

        vLLM applies this scale where logits are made, outside of compiled and captured graphs.
        """
        for module in self.model_runner.get_model().modules():
            if isinstance(module, LogitsProcessor):
                module.scale = 1.0 / temperature


@dataclass
class FileInit(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing is to be agreed on before the first file."""


@dataclass
class FileUpdate(WeightTransferUpdateInfo):  # type: ignore[misc]
    """A safetensors file with some of the weights, under the names of the Hugging Face model."""

    file: str


class FileTransfer(WeightTransferEngine[FileInit, FileUpdate]):  # type: ignore[misc]
    """Reads weights from safetensors files on the same host; every worker takes its own part of each tensor."""

    init_info_cls = FileInit
    update_info_cls = FileUpdate

    def init_transfer_engine(self, init_info: FileInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Layers are filled as their weights arrive, and prepared for the kernels again when complete."""
        self.loaded: set[str] = set()
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: FileUpdate) -> None:
        """Loads one file. It may be deleted afterwards: what is needed later stays mapped."""
        self.loaded |= self.model.load_weights(load_file(update_info.file).items())

    def finish_weight_update(self) -> None:
        """Raises ValueError when the update left parameters of the engine's model as they were."""
        finalize_layerwise_reload(self.model, self.model_config)
        for layer in self.model.modules():
            # A tied head gets no weights of its own, and on a CPU it multiplies by a copy in another layout.
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)
        if missing := {name for name, _ in self.model.named_parameters()} - self.loaded:
            raise ValueError(f"{len(missing)} weights were not sent, the first is {min(missing)}")

    def shutdown(self) -> None:
        """Nothing to release."""


WeightTransferEngineFactory.register_engine(BACKEND, FileTransfer)
