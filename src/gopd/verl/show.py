"""The account of a conversion for people, for the recipe file's head, and for programs."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import yaml

from gopd.verl.account import Entry
from gopd.verl.convert import Converted
from gopd.verl.script import Launch, Script

WIDTH = 116
ORDER = (
    *("method", "student", "teachers", "reference", "objective", "grpo", "correction", "sampler", "scoring"),
    *("data", "validation", "optim", "train", "checkpoint", "tracking", "cluster"),
)
"""Sections as docs/recipe.md has them."""


def recipe_yaml(done: Converted, script: Script, launch: Launch) -> str:
    """The recipe's text: a short account as comments, then the keys that matter."""
    tree = {section: done.tree[section] for section in ORDER if section in done.tree}
    assert tree.keys() == done.tree.keys()
    account = done.conversion
    lines = [
        f"From {launch.where} by gopd import-verl: {len(account.mapped)} flags mapped, {len(account.idle)} without a "
        f"meaning here, {len(account.lost)} not mapped."
    ]
    lines += [f"Not mapped: {_written(entry)}: {entry.note}" for entry in account.lost]
    lines += [
        f"verl's default: {d.key} {_short(d.value)} (gopd's own: {_short(d.own)})" for d in done.defaults
    ]
    lines += [f"Note: {note}" for note in notes(done, script, [])]
    head = [
        part
        for line in lines
        for part in textwrap.wrap(" ".join(line.split()), WIDTH, subsequent_indent="  ")
    ]
    body = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=WIDTH)
    return "".join(f"# {line}\n" for line in head) + body


def notes(done: Converted, script: Script, missing: list[str]) -> list[str]:
    """What there is to know besides flags."""
    taken = [f"from the environment: {', '.join(script.environment)}"] if script.environment else []
    return [*script.warnings, *taken, *done.conversion.notes, *missing]


def report(done: Converted, script: Script, launch: Launch, missing: list[str]) -> str:
    """Every flag of the launch in one of three lists, then what verl's defaults add, then notes."""
    account = done.conversion
    blocks = [f"{launch.where}: method {done.recipe.method}"]
    mapped = [
        (_written(e), f"{e.key}: {_short(e.value)}" + (f" ({e.note})" if e.note else ""))
        for e in account.mapped
    ]
    blocks.append(_block("Mapped", mapped))
    blocks.append(_block("No meaning here", [(_written(e), e.note) for e in account.idle]))
    blocks.append(_block("Not mapped", [(_written(e), e.note) for e in account.lost]))
    defaults = [(f"{d.key}: {_short(d.value)}", f"gopd's own: {_short(d.own)}") for d in done.defaults]
    blocks.append(_block("Left at verl's default, which is not gopd's", defaults))
    said = notes(done, script, missing)
    if said:
        blocks.append("Notes\n" + "\n".join(f"  {note}" for note in said))
    return "\n\n".join(blocks)


def as_json(done: Converted, script: Script, launch: Launch, missing: list[str]) -> dict[str, Any]:
    """The same for programs."""
    account = done.conversion
    return {
        "launch": launch.where,
        "method": done.recipe.method,
        "recipe": done.tree,
        "mapped": [_flag(e) | {"key": e.key, "value": e.value} for e in account.mapped],
        "no_meaning": [_flag(e) for e in account.idle],
        "not_mapped": [_flag(e) for e in account.lost],
        "verl_defaults": [{"key": d.key, "value": d.value, "own": d.own} for d in done.defaults],
        "notes": notes(done, script, missing),
    }


def _flag(entry: Entry) -> dict[str, Any]:
    return {"flag": entry.flag, "text": entry.text, "where": entry.where, "note": entry.note}


def _written(entry: Entry) -> str:
    return f"{entry.flag}={entry.text}" if entry.where else entry.flag


def _short(value: Any) -> str:
    return value if isinstance(value, str) and "\n" not in value else json.dumps(value, ensure_ascii=False)


def _block(title: str, rows: list[tuple[str, str]]) -> str:
    width = min(max((len(left) for left, _ in rows), default=0), 66)
    return "\n".join([f"{title} ({len(rows)})", *(f"  {left:<{width}}  {right}" for left, right in rows)])
