"""The models that are measured, made from what the package and `make smollm2` bring."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from gopd.rows import resolve

ROOT = Path(__file__).resolve().parents[1]
SMOLLM2 = ROOT / "models" / "smollm2"
MADE = ROOT / "models" / "benchmarks"
UNUSED_TOKEN = {"smollm2": "<jupyter_script>", "tiny": "ÿ"}


def tiny() -> Path:
    """The package's tiny base model, with room for long responses."""
    return _variant("tiny", resolve("builtin:base"), {"max_position_embeddings": 16384})


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as it is."""
    if not SMOLLM2.exists():
        raise SystemExit(f"{SMOLLM2} is missing; make it with: make smollm2")
    return SMOLLM2


def endless(name: str, folder: Path) -> Path:
    """The same model with an end-of-sequence token that it never draws: every response has the full length."""
    tokens = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    token = UNUSED_TOKEN[name]
    if token not in tokens:
        added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
        tokens = {t["content"]: t["id"] for t in added}
    made = _variant(f"{name}-endless", folder, {"eos_token_id": tokens[token]})
    config = json.loads((made / "tokenizer_config.json").read_text())
    (made / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": token, "pad_token": token}))
    return made


def other(name: str, folder: Path, scale: float = 0.02) -> Path:
    """A teacher for a student: its weights with noise of `scale` of each matrix's spread."""
    made = MADE / f"{name}-teacher"
    if not made.exists():
        shutil.copytree(folder, made)
        weights = load_file(folder / "model.safetensors")
        torch.manual_seed(1)
        noisy = {
            k: w + scale * w.float().std().to(w.dtype) * torch.randn_like(w) if w.dim() > 1 else w
            for k, w in weights.items()
        }
        save_file(noisy, made / "model.safetensors", metadata={"format": "pt"})
    return made


def _variant(name: str, folder: Path, changes: dict[str, int]) -> Path:
    """A folder with the same weights and other numbers in its configuration files."""
    made = MADE / name
    if not made.exists():
        made.mkdir(parents=True)
        for file in folder.iterdir():
            if file.name == "model.safetensors":
                os.link(file.resolve(), made / file.name)
            elif file.name in ("config.json", "generation_config.json"):
                (made / file.name).write_text(json.dumps(json.loads(file.read_text()) | changes, indent=1))
            else:
                shutil.copy(file, made / file.name)
    return made
