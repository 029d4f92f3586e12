"""The notebooks run from top to bottom without a word on stderr, and their stored outputs are of their stored code."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from test_docs import LINK, anchors

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
LARGEST = 300_000
"""Bytes of a stored notebook."""
ABSOLUTE = re.compile(r"(?:^|[\s\"'(=\[>])(?:/[\w.~-]+){2,}|\b[A-Za-z]:\\", re.MULTILINE)

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("notebooks")


def stored(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """What came out of every cell, but for the text and the pixels: those depend on the machine's rounding."""
    return [
        [f"{out.output_type} {out.get('name', '')}{sorted(out.get('data', ()))}" for out in cell.outputs]
        for cell in code_cells(notebook)
    ]


def texts(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """All that a reader or a program sees in it, but for pictures."""
    yield json.dumps(notebook.metadata)
    for cell in notebook.cells:
        yield cell.source
        for out in cell.get("outputs", []):
            yield out.get("text", "")
            yield from (text for kind, text in out.get("data", {}).items() if kind.startswith("text/"))


@each
def test_it_runs_to_the_end_without_a_word_on_stderr(
    path: Path, tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    (tmp_path / "work").mkdir()
    notebook = tool.executed(path, tmp_path / "work")
    said = [out.text for cell in code_cells(notebook) for out in cell.outputs if out.get("name") == "stderr"]
    assert not said
    assert kinds(notebook) == kinds(stored(path))


@each
def test_what_is_stored_came_out_of_the_stored_code(path: Path, tool: ModuleType) -> None:
    notebook = stored(path)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata["ran"] == tool.digest(notebook), "run make notebooks"


@each
def test_it_is_small_and_names_no_place_of_a_machine(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    found = [match[0] for text in texts(stored(path)) for match in ABSOLUTE.finditer(text)]
    assert not found


@each
def test_its_links_lead_somewhere(path: Path) -> None:
    for cell in stored(path).cells:
        for link in LINK.findall(cell.source) if cell.cell_type == "markdown" else []:
            place, _, anchor = link.partition("#")
            target = path.parent / place
            assert target.is_file(), link
            assert not anchor or anchor in anchors(target), link
