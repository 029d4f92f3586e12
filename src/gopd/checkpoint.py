"""The run folder: what a run leaves on disk, and what it needs to go on after being killed at any moment.

::

    recipe.yaml            the resolved recipe
    versions.json          what it ran with
    metrics.jsonl          one line per step          (gopd.tracking.Metrics)
    validation.jsonl       one line per validation    (gopd.tracking.Metrics)
    skipped.jsonl          one line per optimizer step that was skipped, if any
    rollouts/              Parquet, per-token numbers (gopd.tracking.write_rollouts)
    validation/            the responses of validations, a folder per model
    checkpoints/step-…/    weights, state.json, checksums.json
    tensorboard/           when asked for
    student/               the result, a plain Hugging Face folder

Only one process may write to a run folder: a lock, released by the kernel when the process ends, sees to it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gopd.errors import BadInput, RunFailed
from gopd.files import atomic_folder, atomic_write, discard, is_temporary, make_folder, sweep
from gopd.recipe import Recipe
from gopd.recipe_file import differences, load_recipe, resolved_yaml

MAY_DIFFER = (
    "tracking.trackers: ",
    "tracking.show_generations: ",
    "tracking.profile: ",
    "checkpoint.keep_last: ",
    "cluster.",
    "guard.",
)
"""How recipe keys begin that a resumed run may change: none can touch the metrics already written, or the weights, but
for rounding (`cluster`) and steps to come that are refused (`guard`: a run it has stopped must be able to go on)."""
PACKAGES = ("gopd", "torch", "transformers", "tokenizers", "safetensors", "numpy")

_LOCK, _RECIPE, _VERSIONS = ".lock", "recipe.yaml", "versions.json"
_STATE, _CHECKSUMS = "state.json", "checksums.json"
_NO_LOCKS_HERE = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)


@dataclass
class RunFolder:
    """One run's folder. Get it from `RunFolder.open`.

    `resumed` says whether the folder held a run already. `warnings` collects what the user should be told:
    a resume that found nothing, changed versions, damaged checkpoints that were skipped.
    """

    path: Path
    recipe: Recipe
    resumed: bool
    warnings: list[str] = field(default_factory=list)
    _lock_handle: int = -1

    @classmethod
    def open(cls, recipe: Recipe, *, resume: bool) -> RunFolder:
        """Makes the run folder `tracking.folder`/`tracking.name`, or takes up the one that is there.

        Without `resume` the folder must not hold a run; with it, a folder that does not exist or was killed
        before its recipe was written starts anew (`resumed` is False and a warning says so), and one that
        exists must hold this recipe, `MAY_DIFFER` aside.

        Raises BadInput when there is a run but no `resume`, when the recipe changed, when the folder is not a
        run, is in use by another process, or cannot be written.
        """
        path = _place(recipe)
        try:
            make_folder(path)
            names = {entry.name for entry in path.iterdir()}
        except OSError as error:
            raise _unwritable(path, error) from error
        holds_run = _RECIPE in names
        if not holds_run and any(name != _LOCK and not is_temporary(name) for name in names):
            raise BadInput(
                f"{path} exists and is not a run folder (no {_RECIPE}); choose another tracking.name"
            )
        if holds_run and not resume:
            raise BadInput(
                f"{path} holds a run already; go on with it by --resume, or choose another tracking.name"
            )
        run = cls(path, recipe, resumed=holds_run)
        run._lock()
        if holds_run:
            run._check_same_recipe()
        elif resume:
            run.warnings.append(f"{path}: no run to resume; starting anew")
        run._prepare()
        return run

    @property
    def metrics(self) -> Path:
        """Training metrics, one line per step."""
        return self.path / "metrics.jsonl"

    @property
    def validation(self) -> Path:
        """Validation results, one line each."""
        return self.path / "validation.jsonl"

    @property
    def skipped(self) -> Path:
        """Optimizer steps that were skipped, with their rows, one line each."""
        return self.path / "skipped.jsonl"

    @property
    def profile(self) -> Path:
        """Where time and memory went, with `tracking.profile`."""
        return self.path / "profile.json"

    @property
    def rollouts(self) -> Path:
        """Folder of sampled rollouts."""
        return self.path / "rollouts"

    @property
    def validation_rollouts(self) -> Path:
        """Folder of the responses sampled in validation, a folder per model."""
        return self.path / "validation"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def student(self) -> Path:
        """The trained student. Write it inside `atomic_folder(run.student)`."""
        return self.path / "student"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard's event files."""
        return self.path / "tensorboard"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after `step` optimizer steps is."""
        return self.checkpoints / f"step-{step:08d}"

    def save(self, step: int, write: Callable[[Path], None], state: Mapping[str, Any]) -> Path:
        """Saves the checkpoint of `step` (replacing one of that step) and removes those no longer wanted.

        `write` puts the weights into the folder it is given; `state` (plain JSON values) comes back from
        `latest` with `step` added. Metrics up to `step` must have been appended before. Kept are the last
        `checkpoint.keep_last`, and with `checkpoint.keep_best` the one of step `state["best_step"]`.

        Returns the checkpoint's folder. Raises RunFailed when it cannot be written; those before stay whole.
        """
        final = self.checkpoint(step)
        with atomic_folder(final) as folder:
            write(folder)
            (folder / _STATE).write_text(json.dumps({**state, "step": step}), encoding="utf-8")
            checksums = {name: _sha256(folder / name) for name in sorted(_files_in(folder))}
            (folder / _CHECKSUMS).write_text(json.dumps(checksums, indent=1), encoding="utf-8")
        self.prune(step, state.get("best_step"))
        return final

    def prune(self, step: int, best_step: int | None) -> None:
        """Removes what the checkpoint of `step` supersedes; also on a resume, as the disk may have refused it before.

        Raises RunFailed when the disk refuses.
        """
        steps = self._steps()
        keep = set([s for s in steps if s <= step][-self.recipe.checkpoint.keep_last :])
        if self.recipe.checkpoint.keep_best and best_step is not None:
            keep.add(best_step)
        for other in steps:
            if other not in keep:  # also those after `step`: damaged ones that a resume has passed over
                discard(self.checkpoint(other))

    def latest(self) -> tuple[int, Path, dict[str, Any]] | None:
        """The newest whole checkpoint as (step, folder, state); None when the run has none yet.

        Every file is read and compared with its checksum. Damaged checkpoints are skipped with a warning;
        raises BadInput when all of them are.
        """
        damaged = []
        for step in reversed(self._steps()):
            folder = self.checkpoint(step)
            if damage := _damage(folder):
                damaged.append(f"{folder} ({damage})")
                continue
            if damaged:
                self.warnings.append(
                    f"skipped damaged: {', '.join(damaged)}; going on from the one before, {folder}"
                )
            state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            return step, folder, state
        if damaged:
            raise BadInput(
                f"every checkpoint is damaged: {', '.join(damaged)}; "
                "restore one from a copy, or choose another tracking.name to start anew"
            )
        return None

    def close(self) -> None:
        """Lets other processes write to the folder; the end of the process does the same."""
        os.close(self._lock_handle)

    def _steps(self) -> list[int]:
        found = (re.fullmatch(r"step-(\d{8,})", entry.name) for entry in self.checkpoints.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def _lock(self) -> None:
        """Takes the lock for the life of this process; a child that outlives it does not inherit the lock."""
        try:
            self._lock_handle = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        try:
            fcntl.lockf(self._lock_handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS_HERE:
                raise BadInput(
                    f"another process is writing to {self.path}; wait for it or stop it"
                ) from error
            self.warnings.append(
                f"{self.path}: this file system has no locks; see that only one process writes here"
            )

    def _check_same_recipe(self) -> None:
        before = load_recipe(self.path / _RECIPE)
        changed = [line for line in differences(before, self.recipe) if not line.startswith(MAY_DIFFER)]
        if changed:
            lines = "".join(f"\n  {line}" for line in changed)
            raise BadInput(
                f"the recipe differs from the one {self.path} was started with:{lines}\n"
                "resume with the same values, or choose another tracking.name for a new run"
            )

    def _prepare(self) -> None:
        """Clears leftovers and makes what is missing; `recipe.yaml` first, as it is what makes this a run."""
        try:
            sweep(self.path)
            _write_if_new(self.path / _RECIPE, resolved_yaml(self.recipe))
            for folder in (self.checkpoints, self.rollouts):
                make_folder(folder)
                sweep(folder)
            self._record_versions()
        except (OSError, RunFailed) as error:
            raise _unwritable(self.path, error) from error

    def _record_versions(self) -> None:
        path, now = self.path / _VERSIONS, _versions()
        if not path.exists():
            atomic_write(path, json.dumps(now, indent=1) + "\n")
            return
        record, resumes, last = _recorded(path)
        if record is None:
            self.warnings.append(f"{path} is damaged: what the run was started with is not known any more")
            atomic_write(path, json.dumps(now, indent=1) + "\n")
            return
        changed = [f"{key} {last.get(key)} → {value}" for key, value in now.items() if last.get(key) != value]
        if changed:
            self.warnings.append(
                f"{self.path}: not what the run went on with before ({', '.join(changed)}); "
                "results may differ in the last digits"
            )
            resumes.append(now)
            atomic_write(path, json.dumps(record, indent=1) + "\n")


def _place(recipe: Recipe) -> Path:
    name, folder = recipe.tracking.name, recipe.tracking.folder
    if not name or name == ".." or Path(name).name != name or not name.isprintable():
        raise BadInput(
            f"tracking.name: expected the name of a folder to make in tracking.folder, got {name!r:.200}"
        )
    if not folder.isprintable():
        raise BadInput(f"tracking.folder: expected the path of a folder, got {folder!r:.200}")
    return Path(folder) / name


def _recorded(path: Path) -> tuple[dict[str, Any] | None, list[dict[str, Any]], dict[str, Any]]:
    """What `versions.json` holds, its list of resumes and the last entry; None instead where it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        resumes = record.setdefault("resumed_with", [])
        last = resumes[-1] if resumes else record
        return record, resumes, {**last}
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError):
        return None, [], {}


def _unwritable(path: Path, error: OSError | RunFailed) -> BadInput:
    reason = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    return BadInput(f"cannot use {path} as run folder: {reason}; mend that or choose another tracking.folder")


def _write_if_new(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        atomic_write(path, text)


def _versions() -> dict[str, str | int | None]:
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a source tree
        return None


def _damage(folder: Path) -> str:
    """What is wrong with a checkpoint; empty when every file is there and as it was written."""
    try:
        expected = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
        if not isinstance(expected, dict):
            return f"{_CHECKSUMS}: holds no checksums"
        present = _files_in(folder) - {_CHECKSUMS}
        if present != expected.keys():
            return f"missing or foreign files: {', '.join(sorted(present ^ expected.keys()))}"
        changed = [name for name in sorted(present) if _sha256(folder / name) != expected[name]]
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, RecursionError) as error:
        return f"{_CHECKSUMS}: {error}"
    return f"content changed: {', '.join(changed)}" if changed else ""


def _files_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
