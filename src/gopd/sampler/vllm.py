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
with its factory, hands over safetensors files in memory, a chunk at a time: it is the same on a CPU and on GPUs, with
any number of workers, and nothing is unpickled. vLLM then loads names as from a checkpoint, which merges and
splits projections and ties embeddings. Between two tokens that works as well (`update` called from `progress`): the
cached keys and values of rows in flight are then thrown away and computed again, so that every later token comes from
the new weights alone.

**Randomness.** Every row has its own generator, seeded by a hash of (seed, step, prompt, sample), so which uniform
numbers it draws does not depend on its batch-mates. The logits do, in their last bits, as kernels choose their order
of summation by batch size: a response can differ from one batch to another where two tokens are all but equally good.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from gopd.errors import RunFailed
from gopd.model import model_source
from gopd.sampler import Finished, Progress, Request, Response, nothing
from gopd.sampler.vllm_setup import cache_bytes, check_vllm, environment
from gopd.sections import ModelSpec, SamplingSection, VllmSection

CHUNK_BYTES = 256 * 2**20
"""Weights that are written for the workers at a time."""


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
        self.version = 0
        check_vllm(spec, section, device)
        with environment(section, device):
            import vllm
            import vllm.envs

            vllm.envs.disable_envs_cache()  # what an earlier engine of this process was started with
            options: dict[str, Any] = {
                "gpu_memory_utilization": section.memory_share,
                "max_num_batched_tokens": section.max_batched_tokens,
            }
            if device.type == "cpu":
                # Seeded rows whose prompt comes in pieces are an error in vLLM's CPU runner.
                options = {
                    "kv_cache_memory_bytes": cache_bytes(spec, section, max_tokens, dtype),
                    "max_num_batched_tokens": max(section.max_batched_tokens, max_tokens),
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
                tensor_parallel_size=section.tensor_parallel,
                distributed_executor_backend="mp",
                worker_extension_cls="gopd.sampler.vllm_worker.WorkerExtension",
                weight_transfer_config={"backend": "gopd-files"},
                enforce_eager=section.eager,
                enable_prefix_caching=True,
                # vLLM would otherwise have the next token under way while weights change.
                async_scheduling=False if section.in_flight_updates else None,
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
        """Answers every request, in order. Raises RunFailed when a log-prob is not finite or a worker is lost."""
        engine = self._llm.llm_engine
        ids: list[list[int]] = [[] for _ in requests]
        logprobs: list[list[float]] = [[] for _ in requests]
        versions: list[list[tuple[int, int]]] = [[] for _ in requests]
        done: dict[int, Response] = {}
        tokens = 0
        with self._awake():
            self._llm.collective_rpc("gopd_set_temperature", args=(sampling.temperature,))
            try:
                for number, request in enumerate(requests):
                    prompt = {"prompt_token_ids": request.prompt_ids}
                    engine.add_request(str(number), prompt, self._parameters(request, sampling))
                while engine.has_unfinished_requests():
                    with _workers():
                        outputs = engine.step()
                    for output in outputs:
                        number, (part,) = int(output.request_id), output.outputs
                        if not versions[number] or versions[number][-1][1] != self.version:
                            versions[number].append((len(ids[number]), self.version))
                        ids[number] += part.token_ids
                        logprobs[number] += part.logprobs.logprobs
                        tokens += len(part.token_ids)
                        if output.finished:
                            ended = part.finish_reason == "stop"
                            done[number] = _response(ids[number], logprobs[number], ended, versions[number])
                            finished(number, done[number])
                    progress(len(done), len(requests), tokens)
            finally:  # an interruption leaves rows in flight
                if len(done) < len(requests):
                    engine.abort_request([str(n) for n in range(len(requests)) if n not in done])
        return [done[number] for number in range(len(requests))]

    @torch.no_grad()
    def update(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Replaces the engine's weights, in place, by full tensors under the names of `module.named_parameters()`.

        They come on any device and in any dtype, all of them (tied ones once), and may be made one by one: no more
        than CHUNK_BYTES and one tensor are held at a time, in three copies, and nothing is left when this process is
        killed. What was cached with the old weights is forgotten. With `in_flight_updates` it may be called from
        `progress`. Raises RunFailed when weights are missing, unknown or of another shape; it is then of no use.
        """
        with self._awake(), _workers():
            self._llm.start_weight_update()
            for chunk in self._chunks(weights):
                with _memory_file(save(chunk)) as file:
                    self._llm.update_weights({"update_info": {"file": file}})
            self._llm.finish_weight_update()
            emptied = self._llm.reset_prefix_cache(reset_running_requests=self.section.in_flight_updates)
            assert emptied, "rows in flight during an update"
        self.version = version

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
        yield
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


def _response(
    ids: list[int], logprobs: list[float], ended: bool, versions: list[tuple[int, int]]
) -> Response:
    logprobs_R = torch.tensor(logprobs)
    if not logprobs_R.isfinite().all():
        raise RunFailed("sampling: the model's logits are not finite; its weights have diverged")
    assert len(ids) == len(logprobs)
    return Response(ids, logprobs_R, ended, versions)


@contextlib.contextmanager
def _workers() -> Iterator[None]:
    """Inside, vLLM's workers compute; what they raise comes as a RuntimeError, and leaves as RunFailed."""
    try:
        yield
    except RuntimeError as error:
        raise RunFailed(f"vLLM's workers have failed: {error}; VLLM_LOGGING_LEVEL=INFO shows more") from error


@contextlib.contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """The name of a file in memory that processes of the same user can read while inside, and that no kill leaves."""
    with open(os.memfd_create("gopd-weights"), "wb") as file:
        file.write(content)
        file.flush()
        yield f"/proc/{os.getpid()}/fd/{file.fileno()}"
