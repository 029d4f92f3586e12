"""The page: one file with its style, its scripts, the plotting library and the data; nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import vl_convert

from gopd import __version__
from gopd.report import tables
from gopd.report.curves import Group
from gopd.report.markup import Html, element, join
from gopd.report.runs import Run
from gopd.report.text import script_json, visible

VEGA_LITE = "6.4"
SCRIPTS = ("page.js", "curves.js", "tokens.js", "rollout.js", "inspector.js")
PARTS = {
    "overview": "Overview",
    "curves": "Curves",
    "tokens": "Tokens",
    "validation": "Validation",
    "recipes": "Recipes",
    "versions": "Versions",
}


def page(groups: Sequence[Group], curves: Mapping[str, Any], rollouts: Mapping[str, Any]) -> str:
    """The whole HTML. The content security policy lets run what is hashed here, and nothing that the data bring."""
    runs = [run for group in groups for run in group.runs]
    scripts = [plotting_library(), "\n".join(_static(name) for name in SCRIPTS)]
    style = _static("page.css")
    title = ", ".join(run.name for run in runs)
    data = {"curves": _visible(curves), "rollouts": _visible(rollouts)}
    head = [
        Html('<meta charset="utf-8">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts, style)}">'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        element("title", f"{title} – gopd report"),
        Html(f"<style>{style}</style>"),
    ]
    body = [
        _top(runs),
        element("main", join([tables.problems(runs), *_parts(groups, runs)])),
        element("footer", f"Made by gopd {__version__}. This file holds all that it shows."),
    ]
    for name, value in data.items():
        body.append(Html(f'<script type="application/json" id="data-{name}">{script_json(value)}</script>'))
    body += [Html(f'<script type="module">{script}</script>') for script in scripts]
    return f'<!doctype html>\n<html lang="en">\n<head>\n{join(head)}\n</head>\n<body>\n{join(body)}\n</body>\n</html>\n'


@cache
def plotting_library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines `vegaEmbed`."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)


def _top(runs: Sequence[Run]) -> Html:
    links = [element("a", title, href=f"#{name}") for name, title in PARTS.items()]
    count = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    title = join([element("h1", "gopd report"), element("p", count)])
    toggle = element("button", "Dark", id="theme", type="button", class_="needs-script")
    nav = element("nav", join(links), aria_label="Parts of the page")
    return element("header", join([element("div", title, class_="title"), nav, toggle]))


def _parts(groups: Sequence[Group], runs: Sequence[Run]) -> list[Html]:
    noscript = Html(
        '<noscript><p class="note">Curves and tokens need JavaScript; the tables do not.</p></noscript>'
    )
    content = {
        "overview": join([noscript, tables.main_figures(groups)]),
        "curves": Html('<div class="needs-script" id="panels"></div>'),
        "tokens": Html('<div class="needs-script" id="inspector"></div>'),
        "validation": tables.validations(groups),
        "recipes": tables.recipes(runs),
        "versions": tables.versions(runs),
    }
    return [
        element("section", join([element("h2", PARTS[name]), part]), id=name)
        for name, part in content.items()
    ]


def _static(name: str) -> str:
    return files("gopd.report").joinpath("static", name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str], style: str) -> str:
    allowed = " ".join(_hash(script) for script in scripts)
    sources = f"default-src 'none'; script-src {allowed}; style-src {_hash(style)}; img-src data:"
    return f"{sources}; base-uri 'none'; form-action 'none'"


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _visible(value: Any) -> Any:
    """A JSON value with all its texts made visible."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): _visible(item) for key, item in value.items()}
    return [_visible(item) for item in value] if isinstance(value, list | tuple) else value
