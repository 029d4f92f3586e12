"""The pages: the site builds, links lead somewhere, commands and recipes in them are ones that gopd takes."""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gopd.commands import whole_parser
from gopd.errors import BadInput
from gopd.recipe_file import _apply, _Loader, parse_recipe

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
LINKED = sorted([*PAGES, *ROOT.glob("recipes/**/README.md"), *ROOT.glob("experiments/*/README.md")])

FENCE = re.compile(
    r"^(?P<mark>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=mark)[ \t]*$", re.MULTILINE | re.DOTALL
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SYNTAX = ("gopd doctor RECIPE [section.key=value …] [--rows N] [--problems N] [--json]",)
"""Lines that show a command's form; nothing else may have brackets of that kind."""
OTHERS = ("apiVersion",)
"""First keys of YAML that is no recipe."""
MINIMAL: dict[str, Any] = {
    "student": {"model": "a"},
    "teachers": {"math": {"model": "b"}},
    "data": {"files": ["prompts.jsonl"]},
    "train": {"steps": 1},
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        yield match["language"], match["text"]


def commands(page: Path) -> Iterator[str]:
    """Lines of shell blocks that call gopd, continuations joined; also those indented by four spaces."""
    text = page.read_text(encoding="utf-8")
    shell = "\n".join(body for language, body in blocks(page) if language in ("", "bash", "sh"))
    shell += "\n" + "\n".join(re.findall(r"^    (gopd .*)$", FENCE.sub("", text), re.MULTILINE))
    for line in shell.replace("\\\n", " ").splitlines():
        words = line.strip().removeprefix(".venv/bin/")
        # the doctor's output begins with the command's name and a colon
        if line == line.lstrip() and words.startswith("gopd ") and not re.match(r"gopd \w+ \S+: ", words):
            yield words


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
def test_commands_parse(page: Path) -> None:
    parser, _ = whole_parser()
    for line in commands(page):
        if line in SYNTAX:
            continue
        words = shlex.split(line, comments=True)[1:]
        try:
            options, rest = parser.parse_known_args(words)
        except SystemExit:
            pytest.fail(f"does not parse: {line}")
        # as cli.main does: words of a list may stand between options
        assert all(not word.startswith("-") for word in rest), line
        assert not rest or options.command.rest, line
        check_overrides(options, rest, line)


def check_overrides(options: argparse.Namespace, rest: list[str], line: str) -> None:
    if options.command.rest != "overrides":
        return
    overrides = [*options.overrides, *rest]
    path = ROOT / options.recipe
    tree = yaml.load(path.read_text(encoding="utf-8"), _Loader) if path.is_file() else copy.deepcopy(MINIMAL)
    if not path.is_file() and any(word.startswith("data.files") for word in overrides):
        tree["method"] = "sft" if options.recipe == "sft.yaml" else "opd"
        tree = {key: value for key, value in tree.items() if tree["method"] == "opd" or key != "teachers"}
    for override in overrides:
        _apply(tree, override)
    try:
        parse_recipe(tree, line)
    except BadInput as error:
        pytest.fail(str(error))


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
