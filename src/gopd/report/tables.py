"""The parts of the page that need no JavaScript: main figures, validations, recipes, versions, problems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from gopd.report.curves import Group
from gopd.report.markup import Html, element, figure, interval, join, swatch, table
from gopd.report.runs import Run, number, total_steps

ABSENT = "(absent)"
HELD_OUT = (
    "held-out rows, 95% intervals over problems; KL per token, exact, to q_λ (method grpo: to the reference)"
)
LAST = {
    "kl_to_target": "KL to target",
    "kl_to_reference": "KL to reference",
    "entropy": "entropy",
    "response_tokens/mean": "tokens",
    "truncated": "truncated",
}
"""Figures of the table of main figures, with their short names there."""


def problems(runs: Sequence[Run]) -> Html:
    """What is missing or damaged; empty when nothing is."""
    lines = [element("li", join([element("strong", run.name), Html(": "), element("span", problem)], ""))
             for run in runs for problem in run.problems]  # fmt: skip
    if not lines:
        return Html()
    title = element("h2", "Missing or damaged")
    return element("section", join([title, element("ul", join(lines))]), class_="problems", id="problems")


def main_figures(groups: Sequence[Group]) -> Html:
    """A row per run: what it is, how far it came, and its figures at the last step."""
    runs = [run for group in groups for run in group.runs]
    found = {name for run in runs for name in (run.metrics[-1] if run.metrics else {})}
    rewards = sorted(name for name in found if name.startswith("reward/"))
    shown = [name for name in LAST if name in found]
    head = [
        "run",
        "method",
        "λ",
        "seed",
        "steps",
        *(LAST[n] for n in shown),
        *(n.replace("/", " ", 1) for n in rewards),
    ]
    head += ["tokens/s", "time"]
    rows = []
    for place, group in enumerate(groups):
        for run in group.runs:
            last = run.metrics[-1] if run.metrics else {}
            figures = [figure(number(last, name), name == "truncated") for name in [*shown, *rewards]]
            name = join([swatch(place), element("span", run.name)], " ")
            rows.append([name, *_about(run), *figures, *_speed(run)])
    return table("Main figures at the last step", head, rows)


def _about(run: Run) -> list[str]:
    scales = ", ".join(f"{scale:g}" for scale in run.reward_scales()) or "–"
    total = total_steps(run.recipe)
    steps = f"{run.last_step}" + (f" of {total}" if total and total != run.last_step else "")
    state = "" if run.finished else " (unfinished)"
    return [run.method or "–", scales, str(run.settings.get("train.seed", "–")), steps + state]


def _speed(run: Run) -> list[str]:
    """Response tokens trained on per second of all phases, and how long the steps took."""
    seconds = tokens = 0.0
    for entry in run.metrics:
        phases = {name: number(entry, name) or 0.0 for name in entry if name.startswith("seconds/")}
        seconds += sum(phases.values())
        rate = number(entry, "tokens_per_second/update") or 0.0
        tokens += rate * phases.get("seconds/update", 0.0)
    if not seconds:
        return ["–", "–"]
    return [figure(tokens / seconds) if tokens else "–", duration(seconds)]


def duration(seconds: float) -> str:
    """As 1 h 02 min, 3 min 20 s or 4.2 s."""
    if seconds >= 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
    return f"{seconds // 60:.0f} min {seconds % 60:02.0f} s" if seconds >= 60 else f"{seconds:.1f} s"


# --- validation -----------------------------------------------------------------------------------------------------


def validations(groups: Sequence[Group]) -> Html:
    """A table per domain, accuracy and exact KL with intervals: the student first and last, teachers in between."""
    kept = [(place, run, list(_ends(run))) for place, group in enumerate(groups) for run in group.runs]
    domains = sorted({name for _, _, entries in kept for entry in entries for name in entry["domains"]})
    tables = []
    for domain in domains:
        rows: list[list[object]] = []
        for place, run, entries in kept:
            name = join([swatch(place), element("span", run.name)], " ")
            rows += [
                [name, entry["model"], entry["step"], *_cells(entry["domains"][domain])]
                for entry in entries
                if domain in entry["domains"]
            ]
        head = ["run", "model", "step", "problems", "accuracy", "KL", "tokens", "cut"]
        tables.append(table(f"{domain}: {HELD_OUT}", head, rows, names=2))
    return join(tables) if tables else element("p", "No validation was recorded.", class_="quiet")


def _ends(run: Run) -> Iterator[dict[str, Any]]:
    students = [entry for entry in run.validation if entry["model"] == "student"]
    yield from students[:1]
    yield from (entry for entry in run.validation if entry["model"] != "student")
    yield from students[1:][-1:]


def _cells(domain: Mapping[str, Any]) -> list[object]:
    problems, tokens, cut = (number(domain, key) for key in ("problems", "tokens", "truncated"))
    accuracy, low, high = (number(domain, key) for key in ("accuracy", "low", "high"))
    kl, kl_low, kl_high = (number(domain, key) for key in ("kl_to_target", "kl_low", "kl_high"))
    shown = interval(accuracy, low, high, share=True)
    if accuracy is not None and low is not None and high is not None:
        shown = join([_whisker(accuracy, low, high), element("span", shown)], " ")
    return [
        "–" if problems is None else f"{problems:.0f}",
        shown,
        interval(kl, kl_low, kl_high),
        figure(tokens),
        figure(cut, share=True),
    ]


def _whisker(value: float, low: float, high: float) -> Html:
    """The interval as a line on a scale from 0 to 1."""
    line = f'<line x1="{80 * low:.1f}" x2="{80 * high:.1f}" y1="6" y2="6"/><circle cx="{80 * value:.1f}" cy="6" r="3"/>'
    axis = '<line class="axis" x1="0" x2="80" y1="11" y2="11"/>'
    return Html(
        f'<svg class="whisker" viewBox="-4 0 88 12" width="88" height="12" aria-hidden="true">{axis}{line}</svg>'
    )


# --- recipes and versions -------------------------------------------------------------------------------------------


def recipes(runs: Sequence[Run]) -> Html:
    """The keys in which runs differ, side by side, then each whole recipe."""
    known = [run for run in runs if run.settings]
    keys = dict.fromkeys(key for run in known for key in run.settings)
    values = {key: [_value(run, key) for run in known] for key in keys}
    rows = [[key, *found] for key, found in values.items() if len(set(found)) > 1]
    rows.sort(key=lambda row: ABSENT in row)  # a section that one run has not is long and says little
    parts = []
    if rows:
        parts.append(
            table("Keys in which the recipes differ", ["key", *(r.name for r in known)], rows, names=99)
        )
    elif len(known) > 1:
        parts.append(element("p", "The recipes do not differ."))
    for run in known:
        whole = yaml.safe_dump(run.settings, sort_keys=False, allow_unicode=True, width=100)
        title = element("summary", f"Recipe of {run.name}")
        parts.append(element("details", join([title, element("pre", whole, tabindex="0")])))
    return join(parts) if parts else element("p", "No recipe is there to show.", class_="quiet")


def _value(run: Run, key: str) -> str:
    value = run.settings.get(key, ABSENT)
    return (
        value
        if isinstance(value, str)
        else yaml.safe_dump(value, default_flow_style=True).split("\n...")[0].strip()
    )


def versions(runs: Sequence[Run]) -> Html:
    """Machine and packages, run by run; a resumed run's latest, with those before."""
    known = [run for run in runs if run.versions]
    if not known:
        return element("p", "No versions were recorded.", class_="quiet")
    latest = [_latest(run) for run in known]
    keys = dict.fromkeys(key for record in latest for key in record)
    rows = [[key, *(str(record.get(key, "–")) for record in latest)] for key in keys]
    return table("Hardware and versions", ["", *(run.name for run in known)], rows, names=99)


def _latest(run: Run) -> dict[str, Any]:
    record = {key: value for key, value in run.versions.items() if key != "resumed_with"}
    resumes = [entry for entry in _list(run.versions.get("resumed_with")) if isinstance(entry, dict)]
    if not resumes:
        return record
    changed = [f"{key}: {record.get(key)}" for key, now in resumes[-1].items() if record.get(key) != now]
    return resumes[-1] | {"before a resume": ", ".join(changed)}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
