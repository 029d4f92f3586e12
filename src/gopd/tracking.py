"""What a run tells: metrics as JSON lines, rollouts with per-token numbers as Parquet, outside trackers."""

from __future__ import annotations

import importlib.util
import json
import math
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from gopd.checkpoint import RunFolder
from gopd.errors import BadInput
from gopd.files import append, atomic_write, sync, writing
from gopd.recipe import Recipe

if TYPE_CHECKING:  # reading metrics needs no torch
    from torch import Tensor

    from gopd.types import Rollout, TokenReport


class Metrics:
    """An append-only file of JSON lines, each a mapping with a `step`. Safe against kills at any moment."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds one line and forces it to the disk. Numbers that are not finite are written as null.

        Raises RunFailed when the disk refuses.
        """
        assert isinstance(entry["step"], int)
        line = json_line(entry) + "\n"
        append(self.path, line.encode())
        with writing(self.path):
            sync(self.path)

    def rewind(self, step: int) -> None:
        """Drops every entry after `step` (-1: all) and a last line torn by a kill; the rest keep their bytes.

        For a resume from the checkpoint of `step`. Raises BadInput when an earlier line is damaged.
        """
        kept = [line for line, entry in _entries(self.path) if entry["step"] <= step]
        if self.path.exists():
            atomic_write(self.path, b"".join(kept))


def json_line(entry: Mapping[str, Any]) -> str:
    """An entry on one line; numbers that are not finite are null."""
    return json.dumps(_finite(entry), allow_nan=False, ensure_ascii=False)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a file that `Metrics` wrote, but for a torn last line; none when there is no file."""
    return [entry for _, entry in _entries(path)]


def write_rollouts(
    path: Path,
    step: int,
    rollouts: Sequence[Rollout],
    reports: Sequence[TokenReport | None],
    tokens: Callable[[list[int]], list[str]],
    *,
    versions: Sequence[Sequence[tuple[int, int]]] | None = None,
) -> None:
    """Writes one Parquet file, a row per rollout, with lists of one number per response token.

    `reports` has one entry per rollout; what is None becomes null. `tokens` names token ids. `versions` are
    (tokens, step after which the weights that sampled them were taken) of every rollout's stretches.
    Raises RunFailed when the disk refuses.
    """
    rows = [_row(step, *parts, tokens) for parts in zip(rollouts, reports, strict=True)]
    for row, found in zip(rows, versions or [], strict=versions is not None):
        row["versions"] = [version for tokens, version in found for _ in range(tokens)]
    buffer = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows, schema=ROLLOUT_SCHEMA)
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    atomic_write(path, buffer.getvalue().to_pybytes())


def rollouts_file(folder: Path, step: int) -> Path:
    """The file for the rollouts of one step."""
    return folder / f"step-{step:08d}.parquet"


def rewind_rollouts(folder: Path, step: int) -> None:
    """Removes the files of steps after `step` (-1: all)."""
    for file in folder.glob("step-*.parquet"):
        if int(file.stem.removeprefix("step-")) > step:
            with writing(file):
                file.unlink()


_PER_TOKEN = pa.list_(pa.float32())
ROLLOUT_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("row", pa.int64()),
        ("where", pa.string()),
        ("sample", pa.int64()),
        ("route", pa.string()),
        ("data_source", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("reward", pa.float64()),
        ("finished", pa.bool_()),
        ("response_ids", pa.list_(pa.int64())),
        ("tokens", pa.list_(pa.string())),
        ("versions", pa.list_(pa.int64())),
        ("sampler_logprobs", _PER_TOKEN),
        ("student_logprobs", _PER_TOKEN),
        ("teacher_logprobs", _PER_TOKEN),
        ("reference_logprobs", _PER_TOKEN),
        ("log_partition", _PER_TOKEN),
        ("advantages", _PER_TOKEN),
        ("entropies", _PER_TOKEN),
        ("kls", _PER_TOKEN),
    ]
)
"""Columns of a rollout file. `row` is the prompt's index in the data, `prompt` its last user turn."""


def _row(
    step: int,
    rollout: Rollout,
    report: TokenReport | None,
    tokens: Callable[[list[int]], list[str]],
) -> dict[str, Any]:
    prompt, ids = rollout.prompt, rollout.response_ids
    scores = None if report is None else report.scores

    def numbers(values_R: Tensor | None) -> list[float] | None:
        if values_R is None:
            return None
        assert values_R.shape == (len(ids),), f"{tuple(values_R.shape)} numbers for {len(ids)} tokens"
        return values_R.detach().float().cpu().tolist()

    return {
        "step": step,
        "row": prompt.index,
        "where": prompt.where,
        "sample": rollout.sample,
        "route": scores.route if scores else prompt.route,
        "data_source": prompt.data_source,
        "prompt": next((m["content"] for m in reversed(prompt.messages) if m["role"] == "user"), ""),
        "response": rollout.text,
        "reward": rollout.reward,
        "finished": rollout.finished,
        "response_ids": ids,
        "tokens": tokens(ids),
        "sampler_logprobs": numbers(rollout.sampler_logprobs_R),
        "student_logprobs": numbers(None if report is None else report.student_logprobs_R),
        "teacher_logprobs": numbers(None if scores is None else scores.teacher_logprobs_R),
        "reference_logprobs": numbers(None if scores is None else scores.reference_logprobs_R),
        "log_partition": numbers(None if scores is None else scores.log_partition_R),
        "advantages": numbers(None if report is None else report.advantage_R),
        "entropies": numbers(None if report is None else report.entropy_R),
        "kls": numbers(None if report is None else report.kl_R),
    }


class Tracker(Protocol):
    """An outside tracker that is open."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of one step."""

    def close(self) -> None:
        """Sends what is left."""


class TensorBoard:
    """Event files in the run folder. On a resume, what an earlier process logged after `after` is purged."""

    def __init__(self, recipe: Recipe, run: RunFolder, after: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _quieten_tensorboard()
        self._folder = run.tensorboard
        with writing(self._folder):
            self._writer = SummaryWriter(str(self._folder), purge_step=after + 1 if run.resumed else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one scalar each, on the disk when this returns."""
        with writing(self._folder):
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def close(self) -> None:
        """Closes the event file."""
        with writing(self._folder):
            self._writer.close()


@cache
def _quieten_tensorboard() -> None:
    """What its thread fails for is raised in ours as well: no traceback of the thread in between."""
    shown = threading.excepthook

    def show(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            shown(failed)

    threading.excepthook = show


class Wandb:
    """Weights & Biases; WANDB_MODE and its other variables are honoured. A resumed run keeps its id.

    Steps that an earlier process had logged already are kept as they were: W&B takes each step once.
    """

    def __init__(self, recipe: Recipe, run: RunFolder, after: int) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=recipe.tracking.project,
                name=recipe.tracking.name,
                id=_run_id(run),
                resume="allow",
                dir=run.path,
                config=recipe.model_dump(mode="json"),
            )
        except wandb.Error as error:
            raise BadInput(
                f"tracking.trackers: wandb does not start: {error} (WANDB_MODE=offline needs no account)"
            ) from error

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands one step to W&B's own process."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Waits until everything is sent (offline: written)."""
        self._run.finish()


class Trackio:
    """Trackio, local unless its own variables say otherwise. A resumed run goes on under the same name.

    Steps that an earlier process had logged after the checkpoint appear twice.
    """

    def __init__(self, recipe: Recipe, run: RunFolder, after: int) -> None:
        import trackio

        self._run = trackio.init(
            project=recipe.tracking.project,
            name=recipe.tracking.name,
            resume="allow",
            config=recipe.model_dump(mode="json"),
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hands one step to Trackio."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Waits until everything is written."""
        self._run.finish()


_TRACKERS: Mapping[str, Callable[[Recipe, RunFolder, int], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
}


def check_trackers(recipe: Recipe) -> None:
    """BadInput when a tracker that the recipe asks for is not installed; costs nothing."""
    for name in recipe.tracking.trackers:
        if importlib.util.find_spec(name) is None:
            raise BadInput(f"tracking.trackers: {name} is not installed; `pip install gopd[{name}]`")


class Trackers:
    """The trackers that the recipe asks for, through their own packages.

    `after` is the step of the checkpoint that a resumed run goes on from (-1: from the start). Raises
    BadInput when a package is not installed (before any tracker is opened) or when a tracker does not start.
    """

    def __init__(self, recipe: Recipe, run: RunFolder, *, after: int = -1) -> None:
        check_trackers(recipe)
        self._trackers = [_TRACKERS[name](recipe, run, after) for name in recipe.tracking.trackers]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records the metrics of one step, named like `teacher/math/advantage_mean`, in every tracker."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self) -> None:
        """Sends what is left; call it once, at the end."""
        for tracker in self._trackers:
            tracker.close()


def _run_id(run: RunFolder) -> str:
    """The id under which an outside tracker knows this run, kept in the run folder."""
    path = run.path / "tracker-id"
    if not path.exists():
        atomic_write(path, uuid.uuid4().hex[:12])
    return path.read_text(encoding="utf-8")


def _entries(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Whole lines of a metrics file, as bytes and parsed."""
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or type(entry.get("step")) is not int:
                raise ValueError("no object with a step")
            entries.append((line + b"\n", entry))
        except (ValueError, RecursionError) as error:
            raise BadInput(
                f"{path}:{number}: not a line of metrics: {error}; mend or remove the line"
            ) from error
    return entries


def _finite(value: Any) -> Any:
    """A JSON value with null in place of the numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
