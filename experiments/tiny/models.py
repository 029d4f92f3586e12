"""The tiny family before training: its tokenizer and the seeded random weights of both sizes."""

from __future__ import annotations

from pathlib import Path

import torch
from problems import DRAW, Row, rows
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 512
CONTEXT = 1024
START, END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPES = {
    "small": {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4},
    "large": {"hidden_size": 192, "intermediate_size": 416, "num_hidden_layers": 4, "num_attention_heads": 6},
}


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: any text encodes, every digit is one token, common Python pieces are one token too.

    Merges may cross word ends (at most 16 bytes long), which keeps prompts and responses short.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=16,
        show_progress=False,
    )
    corpus = [row for domain in DRAW for row in rows(domain, "train", 4000, seed=seed)]
    tokenizer.train_from_iterator((text for row in corpus for text in _texts(row)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        additional_special_tokens=[START, END],
        chat_template=CHAT_TEMPLATE,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _texts(row: Row) -> tuple[str, ...]:
    return (row["prompt"][0]["content"], row["response"], "system\n", "user\n", "assistant\n")


def make_model(shape: str, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """Random weights of one size; Qwen3 architecture, tied embeddings."""
    torch.manual_seed(seed)
    end = tokenizer.convert_tokens_to_ids(END)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=32,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        initializer_range=0.05,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
        **SHAPES[shape],
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, eos_token_id=end, pad_token_id=end
    )
    return model


def save_initial(shape: str, seed: int, folder: Path) -> None:
    """Writes the random start of one size as a Hugging Face folder."""
    tokenizer = make_tokenizer(seed)
    make_model(shape, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
