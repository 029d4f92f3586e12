"""Runs the notebooks of docs/ from top to bottom and stores them with what came out: `python tools/notebooks.py`.

`tests/test_notebooks.py` runs them as well, and says when a notebook was changed and not run again.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
SECONDS = 300
"""What one cell may take."""
QUIET = Config({"KernelManager": {"transport_encryption": "auto"}})
"""A kernel that is reached over TCP in plain text says so on stderr."""


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with what a fresh kernel makes of it in `folder`, and nothing of this machine beside.

    Raises CellExecutionError where a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    options = {"timeout": SECONDS, "record_timing": False, "coalesce_streams": True, "config": QUIET}
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options).execute()
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}, "ran": digest(notebook)}
    return notebook


def digest(notebook: nbformat.NotebookNode) -> str:
    """A hash of the code; the stored one is of the code that made the outputs."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(FOLDER.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(executed(path, Path(folder)), path)
