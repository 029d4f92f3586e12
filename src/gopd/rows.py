"""Rows of files (Parquet, JSONL, JSONL.gz) and Hub datasets, one by one, each with its place for error messages."""

from __future__ import annotations

import gzip
import itertools
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gopd.errors import BadInput, OutOfReach
from gopd.sections import SourceSection

BUILTIN = "builtin:"
BUILTIN_FOLDER = Path(__file__).parent / "tiny"
EXTENSIONS = (".parquet", ".jsonl", ".jsonl.gz")
LONGEST_LINE = 1 << 28
"""Characters; what unpacks to more is no row, and would take all memory."""

RawRow = tuple[str, str | Mapping[str, Any]]
"""A row's place, and the row: parsed, or the JSON text of one line."""


def resolve(name: str) -> Path:
    """The path of a file or folder; `builtin:NAME` is one that ships with the package.

    Other names are plain paths, relative to the working directory, and are not looked at.
    Raises BadInput when a builtin does not exist.
    """
    if not name.startswith(BUILTIN):
        return Path(name)
    path = BUILTIN_FOLDER / name.removeprefix(BUILTIN)
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else BUILTIN_FOLDER
        prefix = BUILTIN + "".join(f"{part}/" for part in folder.relative_to(BUILTIN_FOLDER).parts)
        entries = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        known = ", ".join(prefix + entry for entry in entries) or "none"
        raise BadInput(f"{name}: nothing of that name ships with gopd; what does: {known}")
    return path


def raw_rows(source: SourceSection) -> Iterator[RawRow]:
    """All rows of a source, in order. Raises BadInput when a file or dataset cannot be read or holds none."""
    if source.hub:
        yield from _hub_rows(source.hub, source.hub_config, source.split)
        return
    paths = {name: resolve(name) for name in source.files}
    for name, path in paths.items():
        if not path.name.endswith(EXTENSIONS):
            raise BadInput(f"{name}: unknown kind of file; rows are read from {', '.join(EXTENSIONS)}")
        if not os.path.isfile(path):  # pathlib's raises over names that are too long
            problem = "is a folder; name the files in it" if os.path.isdir(path) else "no such file"
            raise BadInput(f"{name}: {problem} (relative names start at {Path.cwd()})")
    for name in source.files:
        read = _parquet_rows if name.endswith(".parquet") else _jsonl_rows
        rows = read(name, paths[name])
        first = next(rows, None)
        if first is None:
            raise BadInput(f"{name}: holds no rows; take it out of the recipe or give a file with rows")
        yield first
        yield from rows


def _jsonl_rows(name: str, path: Path) -> Iterator[RawRow]:
    opened = gzip.open if name.endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            for number in itertools.count(1):
                line = file.readline(LONGEST_LINE)
                if not line:
                    return
                if len(line) == LONGEST_LINE:
                    raise BadInput(
                        f"{name}:{number}: a line of {LONGEST_LINE:,} characters or more is no row"
                    )
                if line.strip():
                    yield f"{name}:{number}", line
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadInput(f"{name}: cannot be read: {error}; expected UTF-8 text, one object a line") from error


def _parquet_rows(name: str, path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{name}: row {number}", row
    # Values that Python has no like of are errors of other kinds: text that is not UTF-8, dates far off.
    except (OSError, pyarrow.ArrowException, ValueError, ArithmeticError, LookupError) as error:
        raise BadInput(f"{name}: cannot be read as Parquet: {error}; write the file again") from error


def _hub_rows(hub: str, config: str | None, split: str) -> Iterator[RawRow]:
    import datasets

    try:
        rows = datasets.load_dataset(hub, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise OutOfReach(
            f"{hub}: cannot be loaded from the Hub: {reason}; check hub, hub_config and split, or "
            f"download the rows and name them in files ({', '.join(EXTENSIONS)})"
        ) from error
    if not len(rows):
        raise BadInput(f"{hub} ({split}): holds no rows; name another split")
    for number, row in enumerate(rows, 1):
        yield f"{hub} ({split}): row {number}", row
