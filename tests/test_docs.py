"""The pages: the site builds, links lead somewhere, recipes in them are ones that gopd takes."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gopd.recipe_file import _Loader, parse_recipe
from pages import FENCE, PAGES, ROOT, blocks, name

LINKED = sorted([*PAGES, *ROOT.glob("recipes/**/README.md"), *ROOT.glob("experiments/*/README.md")])

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
OTHERS = ("apiVersion",)
"""First keys of YAML that is no recipe."""
MINIMAL: dict[str, Any] = {
    "student": {"model": "a"},
    "teachers": {"math": {"model": "b"}},
    "data": {"files": ["prompts.jsonl"]},
    "train": {"steps": 1},
}


def anchors(page: Path) -> set[str]:
    found: set[str] = set()
    for heading in re.findall(
        r"^#{1,6} (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE
    ):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@pytest.mark.skipif(
    importlib.util.find_spec("zensical") is None and not os.environ.get("CI"),
    reason="zensical is not installed",
)
def test_the_site_builds_without_warnings_and_needs_no_network() -> None:
    path = os.pathsep.join(filter(None, [str(ROOT / "tools"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout + done.stderr
    for page in ROOT.glob("docs/*.md"):
        html = (ROOT / "site" / f"{page.stem}.html").read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="?(?:https?:)?//[^>]*>', html), (
            page.name
        )
    assert "<math" in (ROOT / "site" / "objective.html").read_text(encoding="utf-8")


def test_the_navigation_has_every_page_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- (\S+\.md)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(page.name for page in ROOT.glob("docs/*.md"))


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), f"{link}; there are {sorted(anchors(target))}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_recipes_parse(page: Path) -> None:
    for language, text in blocks(page):
        tree = yaml.load(text, _Loader) if language == "yaml" else None
        if tree is None or next(iter(tree)) in OTHERS:
            continue
        fragment = not {"student", "data", "train"} <= tree.keys()
        parse_recipe(merged(MINIMAL, tree) if fragment else tree, f"{name(page)}: {text}")


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        both[key] = (
            merged(both[key], value) if isinstance(value, dict) and isinstance(both.get(key), dict) else value
        )
    return both


def test_the_api_page_is_what_the_docstrings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import site_api  # type: ignore[import-not-found]

    assert site_api.PAGE.read_text(encoding="utf-8") == site_api.page(), "run python tools/site_api.py"
