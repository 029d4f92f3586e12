"""verl's checkpoints: pickled shards, which are not read here. What they are is recognised, and the mend said."""

from __future__ import annotations

from pathlib import Path

from gopd.errors import BadInput

SHARDS = "model_world_size_*_rank_*.pt"
LATEST = "latest_checkpointed_iteration.txt"
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def refuse_shards(folder: Path, role: str) -> None:
    """Raises BadInput where a model folder is a checkpoint of verl, or a part of one, without plain weights."""
    actor = _actor(folder)
    if actor is None:
        return
    plain = actor / "huggingface"
    if any(any(plain.glob(pattern)) for pattern in WEIGHTS):
        if folder != plain:
            raise BadInput(
                f"{role}: {folder} is a checkpoint of verl; the model in it is {plain}: name that folder"
            )
        return
    target = actor.parent.with_name(f"{actor.parent.name}_merged")
    backend = "fsdp" if any(actor.glob(SHARDS)) else "megatron"
    raise BadInput(
        f"{role}: {folder} is a checkpoint of verl whose weights are pickled shards, which gopd does not read; where "
        f"verl is installed run `python -m verl.model_merger merge --backend {backend} --local_dir {actor} "
        f"--target_dir {target}`, then name {target}"
    )


def _actor(folder: Path) -> Path | None:
    """The folder with the actor's shards that a folder holds or belongs to."""
    candidates = [folder, folder / "actor"]
    if folder.name == "huggingface":
        candidates.append(folder.parent)
    if (folder / LATEST).is_file():
        step = (folder / LATEST).read_bytes().strip()
        if step.isdigit() and len(step) < 20:
            candidates.append(folder / f"global_step_{step.decode()}" / "actor")
    return next((c for c in candidates if any(c.glob(SHARDS)) or (c / "dist_ckpt").is_dir()), None)
