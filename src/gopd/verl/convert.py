"""From a launch's overrides to a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gopd.errors import BadInput
from gopd.recipe import AnyRecipe
from gopd.recipe_file import flatten, parse_recipe
from gopd.verl import rules_loss, rules_models, rules_run
from gopd.verl.account import Conversion, Entry
from gopd.verl.flags import ABSENT, BY_FLAG, MAPPED, idle_row, nearest
from gopd.verl.overrides import Overrides

RULES = (*rules_models.RULES, *rules_loss.RULES, *rules_run.RULES)
"""In this order: later ones look at what earlier ones have set."""


@dataclass(frozen=True)
class Default:
    """A key that the script leaves to verl, whose default is not the recipe's."""

    key: str
    value: Any
    own: Any


@dataclass(frozen=True)
class Converted:
    """A recipe, the keys of it that are written, and the account."""

    recipe: AnyRecipe
    tree: dict[str, Any]
    conversion: Conversion
    defaults: list[Default]


def convert(overrides: Overrides, where: str) -> Converted:
    """The recipe of one launch. Raises BadInput where there is none."""
    done = Conversion(overrides.settings)
    done.notes += overrides.warnings
    for rule in RULES:
        rule(done)
    for row in MAPPED:
        if not row.how and (done.given(row.flag) or row.default is not ABSENT) and row.key not in done.keys:
            done.put(row.key, done.get(row.flag), row.flag)
    _judge_others(done, overrides)
    return _finish(done, where)


def _judge_others(done: Conversion, overrides: Overrides) -> None:
    for flag in done.settings:
        row = idle_row(flag)
        if flag in BY_FLAG:
            done.pass_over("settled by a flag that is listed elsewhere", flag)
        elif row is None:
            near = nearest(flag)
            done.lose("not known here" + (f"; did you mean {near}?" if near else ""), flag)
        elif not row.harmless or done.settings[flag].value in row.harmless:
            done.pass_over(row.why, flag)
        else:
            done.lose(row.otherwise, flag)
    done.lost += [Entry(text, "", "", why) for text, why in overrides.other]


def _finish(done: Conversion, where: str) -> Converted:
    """Checks the recipe, and leaves out what is its own default anyway, unless the script says it."""
    recipe = _parse(_nested(done.keys), done, where)
    least = _least(done.keys)
    own = flatten(_parse(_nested(least), done, where).model_dump(mode="json"))
    chosen: dict[str, Any] = {}
    defaults: list[Default] = []
    for key, value in done.keys.items():
        said = any(done.given(flag) for flag in done.sources[key])
        differs = key in least or key not in own or own[key] != value
        if said or differs:
            chosen[key] = value
        if differs and not said and done.sources[key]:
            defaults.append(Default(key, value, None if key in least else own.get(key)))
    tree = _nested(chosen)
    assert _parse(tree, done, where) == recipe
    return Converted(recipe, tree, done, defaults)


def _least(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that every recipe of the kind needs, so that the others show their defaults."""
    needed = ("method", "student.model", "student.lora.rank", "data.files", "validation.files")
    length = ("train.steps", "train.epochs")
    teacher = [key for key in keys if key.startswith("teachers.") and key.endswith(".model")]
    return {key: value for key, value in keys.items() if key in (*needed, *length, *teacher)}


def _parse(tree: dict[str, Any], done: Conversion, where: str) -> AnyRecipe:
    try:
        return parse_recipe(tree, where)
    except BadInput as error:
        flags = {flag for key, flags in done.sources.items() if key in str(error) for flag in flags}
        from_where = [
            f"{f} ({done.settings[f].where})" if done.given(f) else f"{f} (verl's default)"
            for f in sorted(flags)
        ]
        raise BadInput(
            f"{error}" + (f"; these keys come from {', '.join(from_where)}" if flags else "")
        ) from error


def _nested(keys: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *sections, last = key.split(".")
        inner = tree
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return tree
