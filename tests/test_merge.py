"""Merging against direct arithmetic on the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import MakeModel, random_model
from gopd.cli import main
from gopd.errors import BadInput
from gopd.merge import merge


def weights(folder: Path) -> dict[str, Tensor]:
    return {n: w for path in sorted(folder.glob("*.safetensors")) for n, w in load_file(path).items()}


@pytest.fixture(scope="module")
def folders(make_model: MakeModel) -> list[str]:
    return [str(make_model(seed)) for seed in range(3)]


@pytest.mark.parametrize("alpha", [0.25, 0.5, -0.1])
def test_extrapolation_is_what_the_formula_says(folders: list[str], tmp_path: Path, alpha: float) -> None:
    one, two, base = (weights(Path(f)) for f in folders)
    merge(folders[:2], tmp_path / "merged", base=folders[2], alpha=alpha)
    found = weights(tmp_path / "merged")
    assert found.keys() == one.keys()
    for name, weight in found.items():
        average = (one[name].double() + two[name].double()) / 2
        expected = average + alpha * (average - base[name].double())
        torch.testing.assert_close(weight.double(), expected, rtol=1e-6, atol=1e-6)
    text = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert text == json.loads((Path(folders[0]) / "config.json").read_text())


def test_the_command_writes_a_model_that_transformers_loads(
    folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "average"
    assert main(["merge", *folders, "--to", str(target)]) == 0
    assert str(target) in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(target)
    expected = sum(weights(Path(f))["model.norm.weight"] for f in folders) / 3
    torch.testing.assert_close(model.model.norm.weight.detach(), expected)
    assert AutoTokenizer.from_pretrained(target).get_vocab()
    card = (target / "README.md").read_text()
    assert f"- `{Path(folders[1]).name}`" in card and folders[1] not in card


def test_shards_and_dtypes_are_kept(tmp_path: Path, folders: list[str]) -> None:
    parts = []
    for seed in (5, 6):
        folder = tmp_path / f"bf16-{seed}"
        random_model(seed).bfloat16().save_pretrained(folder, max_shard_size="10KB")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(folders[0]) / name, folder)
        parts.append(folder)
    merge([str(p) for p in parts], tmp_path / "merged", base=folders[2], alpha=0.5)
    files = [
        sorted(p.name for p in folder.glob("*.safetensors*")) for folder in (parts[0], tmp_path / "merged")
    ]
    assert files[0] == files[1] and len(files[0]) > 2
    one, two, base = weights(parts[0]), weights(parts[1]), weights(Path(folders[2]))
    for name, weight in weights(tmp_path / "merged").items():
        assert weight.dtype == torch.bfloat16
        average = (one[name].float() + two[name].float()) / 2
        assert torch.equal(weight, (1.5 * average - 0.5 * base[name]).bfloat16()) or torch.allclose(
            weight.float(), 1.5 * average - 0.5 * base[name], rtol=2**-8
        )
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


def test_shapes_and_names_that_differ_are_refused_with_the_first(
    folders: list[str], tmp_path: Path, make_model: MakeModel
) -> None:
    wide = make_model(7, intermediate_size=64)
    with pytest.raises(
        BadInput, match=r"model\.layers\.0\.mlp\.down_proj\.weight has shape \[32, 48\] in .* and \[32, 64\]"
    ):
        merge([folders[0], str(wide)], tmp_path / "merged")
    lacking = tmp_path / "lacking"
    shutil.copytree(folders[0], lacking)
    tensors = load_file(lacking / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, lacking / "model.safetensors")
    for pair in ([folders[0], str(lacking)], [str(lacking), folders[0]]):
        with pytest.raises(
            BadInput, match=f"{folders[0]} has a tensor model.norm.weight, .*lacking has none"
        ):
            merge(pair, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_other_bad_input(
    folders: list[str], tmp_path: Path, llama_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "merged"
    with pytest.raises(BadInput, match=r"is a Qwen3ForCausalLM, .* a LlamaForCausalLM"):
        merge([folders[0], str(llama_folder)], target)
    with pytest.raises(BadInput, match="extrapolation needs both"):
        merge(folders[:2], target, base=folders[2])
    with pytest.raises(BadInput, match="extrapolation needs both"):
        merge(folders[:2], target, alpha=0.5)
    with pytest.raises(BadInput, match="nothing to merge"):
        merge(folders[:1], target)
    with pytest.raises(BadInput, match="no model folder at"):
        merge([folders[0], str(tmp_path / "nowhere")], target)
    bare = tmp_path / "bare"
    shutil.copytree(folders[0], bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(BadInput, match="no safetensors weights"):
        merge([folders[0], str(bare)], target)
    assert main(["merge", *folders, "--to", str(tmp_path)]) == 2
    assert "exists; give a new folder" in capsys.readouterr().err
