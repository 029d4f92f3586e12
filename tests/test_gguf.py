from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from conftest import random_model
from gopd.errors import BadInput
from gopd.gguf import import_gguf
from gopd.rows import resolve

BASE = resolve("builtin:base")


@pytest.fixture(scope="module")
def original() -> PreTrainedModel:
    """A random Qwen3 whose heads are as wide as Transformers takes for granted in GGUF files."""
    return random_model(0, head_dim=128, hidden_size=128, intermediate_size=64, vocab_size=512)


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    without: str | None = None,
) -> None:
    """A model with the tiny family's tokenizer as a GGUF file, its matrices quantised."""
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    add_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config.num_hidden_layers)
    for name, weight in model.named_parameters():
        stored = names.get_name(name, try_suffixes=(".weight",))
        values = weight.detach().numpy()
        if name == without:
            continue
        if values.ndim == 1:
            writer.add_tensor(stored, values)
        else:
            writer.add_tensor(stored, gguf.quants.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    tree: dict[str, Any] = json.loads((BASE / "tokenizer.json").read_text())
    special = {t["content"] for t in tree["added_tokens"]}
    vocabulary = sorted(tree["model"]["vocab"].items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([token for token, _ in vocabulary])
    kinds = (gguf.TokenType.CONTROL, gguf.TokenType.NORMAL)
    writer.add_token_types([kinds[token not in special] for token, _ in vocabulary])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tree["model"]["merges"]])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_chat_template((BASE / "chat_template.jinja").read_text())


@pytest.mark.parametrize("quantization", [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0])
def test_a_gguf_file_becomes_a_plain_folder(
    original: PreTrainedModel, quantization: gguf.GGMLQuantizationType, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "base.gguf", original, quantization)
    import_gguf(tmp_path / "base.gguf", tmp_path / "base")
    imported = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    meant = copy.deepcopy(original)
    for weight in (p.data for p in meant.parameters() if p.dim() == 2):
        stored = gguf.quants.quantize(weight.numpy(), quantization)
        weight.copy_(torch.from_numpy(gguf.quants.dequantize(stored, quantization)))
    ids = torch.arange(2, 300)[None]
    with torch.no_grad():
        torch.testing.assert_close(imported(ids).logits, meant(ids).logits, rtol=1e-5, atol=1e-5)
    assert "quantization_config" not in json.loads((tmp_path / "base" / "config.json").read_text())


def test_a_tensor_that_is_missing_is_an_error(original: PreTrainedModel, tmp_path: Path) -> None:
    """Transformers would fill it with random numbers."""
    gone = "model.layers.1.mlp.up_proj.weight"
    write_gguf(tmp_path / "base.gguf", original, without=gone)
    with pytest.raises(BadInput, match=f"1 tensors are missing .* {gone}"):
        import_gguf(tmp_path / "base.gguf", tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_shapes_that_the_configuration_contradicts_are_an_error(tmp_path: Path) -> None:
    """Heads of another width than 128: the GGUF file says so, but Transformers does not read it there."""
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    write_gguf(tmp_path / "base.gguf", base)
    with pytest.raises(BadInput, match=r"layers\.0\.self_attn\.k_norm\.weight"):
        import_gguf(tmp_path / "base.gguf", tmp_path / "base")
    assert not (tmp_path / "base").exists()


def test_tokens_template_and_ends_come_along(original: PreTrainedModel, tmp_path: Path) -> None:
    write_gguf(tmp_path / "base.gguf", original)
    import_gguf(tmp_path / "base.gguf", tmp_path / "base")
    own, imported = (AutoTokenizer.from_pretrained(folder) for folder in (BASE, tmp_path / "base"))
    chat = [{"role": "user", "content": "What is 12 + 30?"}]
    texts = [t.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for t in (own, imported)]
    assert texts[0] == texts[1]
    assert own.get_vocab().items() <= imported.get_vocab().items()
    assert imported.decode(imported(texts[1])["input_ids"]) == texts[1]
    assert imported.eos_token_id == imported.pad_token_id == 1
