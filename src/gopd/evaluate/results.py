"""The results folder: one folder per model, in it one per task.

`samples.jsonl` holds a line per sample: problem, sample, prompt, response, tokens, finished, and once graded answer,
reason, right (and base, for suites with two sets of tests). While a task is under way lines are appended as responses
finish, and verdicts go to `verdicts.jsonl`; at the end the two become one file, in order. `settings.json` says with
what it was sampled and graded.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gopd.errors import BadInput
from gopd.files import append, atomic_write, make_folder, sweep, writing
from gopd.types import Verdict

SAMPLES, VERDICTS, SETTINGS, SUMMARY = "samples.jsonl", "verdicts.jsonl", "settings.json", "summary.json"

_SETTINGS = ("task", "weights", "prompt", "sampling", "grading")
"""What must be the same for a folder to be gone on with."""
_SAMPLE = {"problem": str, "sample": int, "response": str}
_VERDICT = {"problem": str, "sample": int, "reason": str}

Record = dict[str, Any]
Key = tuple[str, int]
"""A problem's id and the number of the sample."""


class TaskResults:
    """What is known of one model's answers to one task."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records: dict[Key, Record] = {}
        self._lock = threading.Lock()
        for record in _lines(folder / SAMPLES, _SAMPLE):
            self.records[record["problem"], record["sample"]] = record
        for record in _lines(folder / VERDICTS, _VERDICT):
            if (key := (record["problem"], record["sample"])) in self.records:
                self.records[key] |= record

    @property
    def settings(self) -> dict[str, Any]:
        """How it was sampled and graded; empty for a new folder."""
        path = self.folder / SETTINGS
        if not path.exists():
            return {}
        found = _object(path.read_bytes())
        whole = (
            found is not None and isinstance(found.get("task"), str) and isinstance(found.get("model"), str)
        )
        if found is None or not whole or not found.keys() >= {*_SETTINGS}:
            raise BadInput(f"{path} is damaged; restore it from a copy, or give a new folder by --to")
        return found

    def check(self, settings: Mapping[str, Any]) -> None:
        """Raises BadInput when what is there was made with other settings."""
        known = self.settings
        if other := [name for name in _SETTINGS if known and known[name] != settings[name]]:
            differ = ", ".join(f"{name} {known[name]!r}, now {settings[name]!r}" for name in other)
            mend = "gopd grade decides anew, or give" if other == ["grading"] else "give"
            raise BadInput(
                f"{self.folder} holds results of another configuration ({differ}); {mend} a new folder by --to"
            )

    def open(self, settings: Mapping[str, Any]) -> None:
        """Takes the folder up, or makes it."""
        with writing(self.folder):
            make_folder(self.folder)
        sweep(self.folder)
        atomic_write(self.folder / SETTINGS, json.dumps(settings, indent=1) + "\n")

    def sampled(self, record: Record) -> None:
        """Keeps a sample, at once on disk."""
        with self._lock:
            self.records[record["problem"], record["sample"]] = record
            self._append(SAMPLES, record)

    def graded(self, key: Key, verdict: Verdict) -> None:
        """Keeps a verdict, at once on disk."""
        found = {
            name: value for name, value in asdict(verdict).items() if name != "base" or value is not None
        }
        with self._lock:
            record = {"problem": key[0], "sample": key[1], **found, "right": verdict.right}
            self.records[key] |= record
            self._append(VERDICTS, record)

    def ungrade(self, grading: Mapping[str, Any]) -> None:
        """Forgets all verdicts, on disk too: they will be given with these settings."""
        for record in self.records.values():
            for name in ("answer", "reason", "right", "base"):
                record.pop(name, None)
        self.close()
        atomic_write(
            self.folder / SETTINGS, json.dumps(self.settings | {"grading": grading}, indent=1) + "\n"
        )

    def close(self, order: Sequence[str] = ()) -> None:
        """One file of all there is: problems in the given order, others after them as they were first sampled."""
        places: dict[str, int] = {}
        for problem in (*order, *(problem for problem, _ in self.records)):
            places.setdefault(problem, len(places))
        ordered = sorted(self.records.items(), key=lambda item: (places[item[0][0]], item[0][1]))
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for _, record in ordered)
        atomic_write(self.folder / SAMPLES, text.encode("utf-8", "surrogatepass"))
        with writing(self.folder / VERDICTS):
            (self.folder / VERDICTS).unlink(missing_ok=True)

    def _append(self, name: str, record: Record) -> None:
        line = json.dumps(record, ensure_ascii=False) + "\n"
        append(self.folder / name, line.encode("utf-8", "surrogatepass"))


def _lines(path: Path, fields: Mapping[str, type]) -> list[Record]:
    """All whole lines of a file, each with these fields; what a kill left half-written at its end is cut off."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with writing(path), path.open("r+b") as file:
            file.truncate(whole)
    found = []
    for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
        record = _object(line)
        if record is None or any(not isinstance(record.get(name), kind) for name, kind in fields.items()):
            raise BadInput(f"{path}:{number}: is not a sample; take the line out")
        if "reason" in record and not isinstance(record.get("right"), bool):
            raise BadInput(f"{path}:{number}: has a reason and no verdict; take the line out")
        found.append(record)
    return found


def _object(text: bytes) -> dict[str, Any] | None:
    """A JSON object; None for anything else."""
    try:
        found = json.loads(text.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def task_folders(folder: Path) -> list[Path]:
    """The task folders in a results folder, of one model or several. Raises BadInput when there are none."""
    found = sorted(path.parent for path in folder.glob("**/" + SETTINGS))
    if not found:
        what = "holds no results of gopd eval" if folder.is_dir() else "there is no such folder"
        raise BadInput(f"{folder}: {what}")
    return found


def write_summary(folder: Path, model: str, tasks: Mapping[str, Any]) -> None:
    """A model's figures; those of other tasks, from other runs into the folder, stay."""
    path = folder / SUMMARY
    summary = _object(path.read_bytes()) if path.exists() else {"tasks": {}}
    before = None if summary is None else summary.get("tasks")
    if not isinstance(before, dict):
        raise BadInput(f"{path} is damaged; remove it and run the command again: every sample is kept")
    atomic_write(path, json.dumps({"model": model, "tasks": {**before, **tasks}}, indent=1) + "\n")


def complete(records: Sequence[Record]) -> bool:
    """Whether every sample is graded."""
    return all("reason" in record for record in records)
