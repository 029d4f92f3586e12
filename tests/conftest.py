"""Shared fixtures: tiny random models with a small tokenizer, made in this process; nothing is downloaded."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from gopd import sandbox
from gopd.sandbox.process import launch

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unk|>")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n+-*/=.,?!()[]{}:;\\_'\"$"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EOS = SPECIAL.index("<|im_end|>")
VOCABULARY = len(SPECIAL) + len(CHARACTERS)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "eos_token_id": EOS,
    "pad_token_id": EOS,
    "bos_token_id": None,
}

MakeModel = Callable[..., Path]
"""make_model(seed, kind="qwen3", tokenizer=True, **config) → model folder."""


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, lower case; 64 tokens in all, with a chat template; decoding gives the text back."""
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *CHARACTERS))}
    core = Tokenizer(models.BPE(vocabulary, [], unk_token="<|unk|>"))
    core.normalizer = normalizers.Lowercase()
    core.decoder = decoders.Fuse()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|unk|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def random_model(seed: int, kind: str = "qwen3", **config: Any) -> PreTrainedModel:
    """A random model whose next-token distributions are far from uniform: wide weights, uneven norms.

    `qwen3` ties its embeddings, every other kind does not, unless `config` says so.
    """
    sizes = SIZES | {"tie_word_embeddings": kind == "qwen3"} | config
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    model.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=EOS, do_sample=True)
    return model.eval()


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """Factory of model folders: `make_model(seed, kind="qwen3", tokenizer=True, **config) -> Path`."""
    numbers = itertools.count()

    def make(seed: int, kind: str = "qwen3", *, tokenizer: bool = True, **config: Any) -> Path:
        folder = tmp_path_factory.mktemp("models") / f"{kind}-{seed}-{next(numbers)}"
        random_model(seed, kind, **config).save_pretrained(folder)
        if tokenizer:
            tiny_tokenizer().save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def student_folder(make_model: MakeModel) -> Path:
    """A tiny random Qwen3, tied embeddings, grouped-query attention."""
    return make_model(0)


@pytest.fixture(scope="session")
def teacher_folder(make_model: MakeModel) -> Path:
    return make_model(1)


@pytest.fixture(scope="session")
def reference_folder(make_model: MakeModel) -> Path:
    return make_model(2)


@pytest.fixture(scope="session")
def llama_folder(make_model: MakeModel) -> Path:
    """A tiny random Llama with a head of its own."""
    return make_model(3, "llama")


@pytest.fixture(params=["namespaces", "landlock"])
def run(request: pytest.FixtureRequest) -> Callable[..., sandbox.Outcome]:
    """`gopd.sandbox.run` in each isolation; on a machine that lacks one of them the test fails."""
    default = sandbox.Limits()
    return lambda code, *, stdin=b"", limits=default: launch(request.param, code, stdin, limits)


@pytest.fixture(scope="session")
def three_runs(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run folders for reports, to be read only: two seeds of ExOPD with two teachers, and OPD (λ = 1) with seed 0.

    Six steps of four from twelve prompts, so each prompt comes back; held-out rows before, in between and after.
    """
    import gopd
    from gopd.recipe_file import parse_recipe
    from runs import held_out, opd_tree

    folder = tmp_path_factory.mktemp("three")
    student, teachers = make_model(0), {"math": make_model(1), "code": make_model(2)}
    validation = held_out(folder, 4, ("math", "code"), verifier="math")
    runs = []
    for name, scale, seed in (("exopd-seed0", 1.25, 0), ("exopd-seed1", 1.25, 1), ("opd-seed0", 1.0, 0)):
        changes: dict[str, Any] = {
            "objective": {"reward_scale": scale},
            "train": {"steps": 6, "seed": seed},
            "tracking": {"name": name},
            "data": {"verifier": "math"},
            "validation": validation,
        }
        runs.append(gopd.train(parse_recipe(opd_tree(folder, student, teachers, **changes))))
    return runs
