"""Sampling engines behind one request: prompts and response lengths in, seconds out. Argument: engine, model folder.

Every row draws exactly as many tokens as asked for, so all engines do the same useful work. `gopd` is the embedded
sampler. `generate` is Transformers with a dynamic cache, `generate-static` with a static cache; both decode until the
longest row is done, as they must. `vllm` needs an environment that has it. `products` and `attention` draw nothing:
they are what sampling cannot do without, for rows of equal lengths.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from turns import Answer, Stage

Rows = list[list[int]]
Draw = Callable[[Rows, list[int]], None]
"""(prompts, response lengths) → all drawn."""


def gopd_engine(folder: str) -> Draw:
    import torch

    from gopd.memory import keep_freed_memory
    from gopd.model import LanguageModel, load_model
    from gopd.sampler import Request
    from gopd.sampler.torch import TorchSampler
    from gopd.sections import ModelSpec, SamplingSection

    keep_freed_memory()
    loaded = load_model(ModelSpec(model=folder), "model", device=torch.device("cpu"), dtype=torch.float32)

    class Endless(LanguageModel):
        @property
        def eos_ids(self) -> list[int]:
            return []

    model = Endless(loaded.module, loaded.tokenizer, loaded.name)

    def draw(prompts: Rows, lengths: list[int]) -> None:
        requests = [Request(ids, (0, i), n) for i, (ids, n) in enumerate(zip(prompts, lengths, strict=True))]
        responses = TorchSampler(model, min(len(requests), 64)).sample(
            requests, SamplingSection(), lambda *_: None
        )
        assert [len(r.ids) for r in responses] == lengths

    return draw


def generate_engine(folder: str, **options: Any) -> Draw:
    import torch
    from transformers import AutoModelForCausalLM, StoppingCriteria

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None

    class Lengths(StoppingCriteria):
        def __init__(self, prompt: int, lengths: list[int]) -> None:
            self.prompt, self.lengths = prompt, torch.tensor(lengths)

        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return input_ids.shape[1] - self.prompt >= self.lengths

    def draw(prompts: Rows, lengths: list[int]) -> None:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=0,
                max_new_tokens=max(lengths),
                stopping_criteria=[Lengths(width, lengths)],
                **options,
            )
        assert out.shape[1] == width + max(lengths)

    return draw


def vllm_engine(folder: str) -> Draw:
    from vllm import LLM, SamplingParams

    engine = LLM(folder, dtype="float32", max_model_len=2048, max_num_seqs=64, disable_log_stats=True)

    def draw(prompts: Rows, lengths: list[int]) -> None:
        settings = [
            SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True, logprobs=0, detokenize=False)
            for n in lengths
        ]
        outputs = engine.generate([{"prompt_token_ids": p} for p in prompts], settings, use_tqdm=False)
        assert [len(o.outputs[0].token_ids) for o in outputs] == lengths

    return draw


def floor_engine(name: str, folder: str) -> Draw:
    import bare
    from limits import load

    from gopd.memory import keep_freed_memory

    keep_freed_memory()
    model = load(Path(folder))
    call = {"products": bare.sampling_products, "attention": bare.sampling_attention}[name]

    def draw(prompts: Rows, lengths: list[int]) -> None:
        assert len(set(lengths)) == 1
        call(model, [len(p) for p in prompts], lengths[0])

    return draw


ENGINES: dict[str, Callable[[str], Draw]] = {
    "gopd": gopd_engine,
    "generate": generate_engine,
    "generate-static": lambda folder: generate_engine(folder, cache_implementation="static"),
    "vllm": vllm_engine,
    "products": lambda folder: floor_engine("products", folder),
    "attention": lambda folder: floor_engine("attention", folder),
}


def main() -> None:
    stage = Stage()
    draw = ENGINES[sys.argv[1]](sys.argv[2])

    def work(prompts: Rows, lengths: list[int]) -> Answer:
        start = time.perf_counter()
        draw(prompts, lengths)
        return {"seconds": time.perf_counter() - start}

    stage.serve(work)


if __name__ == "__main__":
    main()
