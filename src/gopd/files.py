"""Writing to disk so that a kill, a crash or a full disk loses nothing: old content or new, never half.

Everything is first written beside its place under a hidden name (`.<name>.tmp`), forced to the disk, and then
renamed. A folder that replaces another moves that one to `.<name>.old` in between, where `sweep` finds it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from safetensors import SafetensorError

from gopd.errors import RunFailed


def atomic_write(path: Path, data: bytes | str) -> None:
    """Replaces the file at `path` by `data` (text as UTF-8); missing parent folders are made.

    Raises RunFailed when the disk refuses; the earlier file is then untouched.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Gives the name of a temporary file to write; when the block ends well that file becomes `path`.

    Missing parent folders are made. Raises RunFailed when the disk refuses; the earlier file is then untouched.
    """
    temporary = _temporary(path)
    with writing(path):
        make_folder(path.parent)
        _remove(temporary)  # were it a link, what it points to would be written
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder to fill; when the block ends well it becomes `path`, replacing what was there.

    When the block raises, the temporary folder is removed and what was at `path` is untouched. Raises
    RunFailed when the disk refuses, inside the block or after it.
    """
    temporary = _temporary(path)
    with writing(path):
        make_folder(path.parent)
        _settle(path)
        temporary.mkdir()
        try:
            yield temporary
            _sync_tree(temporary)
            if path.exists():
                path.rename(_replaced(path))
            temporary.rename(path)
            sync(path.parent)
        finally:
            _settle(path)


def append(path: Path, data: bytes) -> None:
    """Adds to a file, or begins it. Raises RunFailed when the disk refuses; the file then ends where it did before."""
    new = not path.exists()
    with writing(path), path.open("ab", buffering=0) as file:
        end = file.tell()
        try:
            while data:
                data = data[file.write(data) :]
        except OSError:
            file.truncate(end)
            raise
        if new:
            sync(path.parent)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, where they are missing, and forces their names to the disk."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


def discard(path: Path) -> None:
    """Removes a folder; killed half-way it leaves only a temporary, never a folder with half its files."""
    with writing(path):
        path.rename(_temporary(path))
        _remove(_temporary(path))


def sweep(folder: Path) -> None:
    """Ends what killed writes left directly in `folder`.

    Replaced folders whose successor never arrived go back to their place, temporary files and folders go.
    Must not run while another process writes there.
    """
    with writing(folder):
        for leftover in [*folder.glob(".*.old"), *folder.glob(".*.tmp")]:
            _settle(folder / leftover.name[1:].removesuffix(".old").removesuffix(".tmp"))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a write that the system refuses (disk full, no permission, …) into RunFailed naming `path`."""
    try:
        yield
    except OSError as error:
        named = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        elsewhere = f" ({named})" if named not in (None, str(path)) else ""
        raise _failed(path, f"{error.strerror or error}{elsewhere}") from error
    except Exception as error:  # safetensors and tokenizers, written in Rust, say it in words only
        in_words = "I/O error" in str(error) or "os error" in str(error)
        if type(error) not in (SafetensorError, Exception) or not in_words:
            raise
        raise _failed(path, str(error)) from error


def sync(path: Path) -> None:
    """Forces a file's content, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_name(name: str) -> str:
    """A name from outside as part of a file's name: another one for every other, and never a path."""
    return quote(name, safe=" ")


def is_temporary(name: str) -> bool:
    """Whether a file name is one that a killed write may leave."""
    return name.startswith(".") and name.endswith((".tmp", ".old"))


def _failed(path: Path, reason: str) -> RunFailed:
    return RunFailed(f"cannot write {path}: {reason}; nothing that was saved before is lost")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _replaced(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _settle(path: Path) -> None:
    """Leaves at `path` the new folder if it arrived, else the one it was to replace; removes the rest."""
    temporary, replaced = _temporary(path), _replaced(path)
    _remove(temporary)
    if replaced.exists():
        replaced.rename(temporary if path.exists() else path)
        _remove(temporary)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_tree(folder: Path) -> None:
    """Forces all to the disk, readable to whom the folder is: safetensors writes for its owner only."""
    mode = folder.stat().st_mode & 0o666  # what the umask left of the folder's
    for parent, _, names in os.walk(folder):
        for name in names:
            Path(parent, name).chmod(mode)
            sync(Path(parent, name))
        sync(Path(parent))
