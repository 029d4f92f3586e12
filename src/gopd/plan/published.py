"""Architectures that the paper's recipes name, as their published config.json files state them.

With these a plan needs no network. Only shapes are here; names of trained models stand for what they were made from.
"""

from __future__ import annotations

from typing import Any

_QWEN3 = {"model_type": "qwen3", "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960}

CONFIGS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-1.7B": _QWEN3
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-4B": _QWEN3
    | {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
    },
    "Qwen/Qwen3-30B-A3B-Instruct-2507": _QWEN3
    | {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "max_position_embeddings": 262144,
    },
}

MADE_FROM = {
    "Keven16/Qwen3-4B-Non-Thinking-RL-Math-Step500": "Qwen/Qwen3-4B",
    "Keven16/Qwen3-4B-Non-Thinking-RL-Code-Step300": "Qwen/Qwen3-4B",
}
"""Models of the paper that reinforcement learning made from another (arXiv 2602.12125), so of the same shape."""
