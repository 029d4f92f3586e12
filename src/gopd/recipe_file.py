"""Recipes as files: YAML and overrides in, a checked recipe or a message that helps out; the resolved copy written.

Unknown keys are errors that suggest the nearest known key.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from gopd.errors import BadInput
from gopd.masking import refuse_secrets
from gopd.recipe import RECIPES, AnyRecipe, Recipe

MOST_VALUES = 100_000
"""Values of a recipe with its aliases written out."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: `1e-5` and `-.5` are numbers, not strings. Repeated keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        if len(found) < len(keys):
            twice = next(key for key, count in Counter(keys).items() if count > 1)
            raise yaml.constructor.ConstructorError(
                None, None, f"key {twice!r} appears twice", node.start_mark
            )
        return found


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+([eE][-+]?[0-9]+)?|[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+)$"),
    list("-+.0123456789"),
)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> AnyRecipe:
    """Reads a recipe file and applies `section.key=value` overrides; values are YAML.

    Raises BadInput when the file is missing, is not YAML, or does not describe a possible run.
    """
    path = Path(path)
    tree = read_tree(path)
    for override in overrides:
        _apply(tree, override)
    if isinstance(tracking := tree.setdefault("tracking", {}), dict):
        tracking.setdefault("name", path.stem)
    return parse_recipe(tree, str(path))


def read_tree(path: Path) -> dict[str, Any]:
    """A recipe file as plain values, not yet checked; raises BadInput when it is missing or is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot read recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"recipe {path}: expected YAML in UTF-8, found other bytes: {error}") from error
    tree = _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        raise BadInput(f"recipe {path}: expected sections with keys, found {type(tree).__name__}")
    return tree


def parse_recipe(tree: Mapping[str, Any], where: str = "recipe") -> AnyRecipe:
    """Checks a tree of plain values and returns the recipe; raises BadInput naming every wrong key."""
    try:
        refuse_secrets(tree)  # here already, as messages about wrong values show them
    except ValueError as error:
        raise BadInput(f"{where}: {error}") from None
    method = tree.get("method", "opd")
    if not isinstance(method, str) or method not in RECIPES:
        raise BadInput(f"{where}: unknown method {method!r}; known: {', '.join(RECIPES)}")
    model = RECIPES[method]
    if unknown := _unknown_keys(model, tree):
        raise BadInput(f"{where}: " + "; ".join(unknown))
    try:
        text = json.dumps(tree, ensure_ascii=False).encode()  # half surrogates are an error here
    except (TypeError, ValueError) as error:
        raise BadInput(
            f"{where}: {error}; recipes hold text, numbers, true/false, lists and sections"
        ) from error
    try:
        return typing.cast(AnyRecipe, model.model_validate_json(text))
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'recipe'}: {_plain(e)}" for e in error.errors()]
        raise BadInput(f"{where}: " + "; ".join(lines)) from error


def resolved_yaml(recipe: Recipe) -> str:
    """The recipe with every default written out; loading it gives an equal recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(old: Recipe, new: Recipe) -> list[str]:
    """One line `section.key: old → new` for every value in which two recipes differ."""
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    missing = "(absent)"
    return [
        f"{key}: {before.get(key, missing)} → {after.get(key, missing)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, missing) != after.get(key, missing)
    ]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree's values by their dotted keys, as in `section.key`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return _unshared(yaml.load(text, _Loader), [MOST_VALUES])
    except RecursionError as error:
        raise BadInput(f"{where}: sections within sections, too deep for a recipe or without end") from error
    # PyYAML lets through what its constructors raise, as over a date like 2001-99-99.
    except (yaml.YAMLError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
        raise BadInput(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def _unshared(value: Any, room: list[int]) -> Any:
    """A copy in which aliases (`*name`) share nothing, so that an override changes one place. Raises ValueError
    where there are more values than `room`."""
    room[0] -= 1
    if room[0] < 0:
        raise ValueError(f"more than {MOST_VALUES:,} values, with aliases written out")
    if isinstance(value, dict):
        return {key: _unshared(inner, room) for key, inner in value.items()}
    return [_unshared(inner, room) for inner in value] if isinstance(value, list | tuple) else value


def _apply(tree: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise BadInput(f"override {override!r}: expected section.key=value")
    *sections, last = key.split(".")
    for section in sections:
        child = tree.setdefault(section, {})
        if child is None:
            child = tree[section] = {}
        if not isinstance(child, dict):
            raise BadInput(f"override of {key}: {section!r} is a value, not a section")
        tree = child
    tree[last] = _parse_yaml(value, f"override {override!r}")


def _unknown_keys(model: type[BaseModel], tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    problems = []
    for key, value in tree.items():
        if key not in model.model_fields:
            near = difflib.get_close_matches(str(key), model.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(model.model_fields)}"
            problems.append(f"unknown key {prefix}{key}; {hint}")
            continue
        child, many = _section_of(model.model_fields[key].annotation)
        if child is None or not isinstance(value, dict):
            continue
        for name, entry in value.items() if many else [("", value)]:
            if isinstance(entry, dict):
                dotted = f"{prefix}{key}." + (f"{name}." if many else "")
                problems += _unknown_keys(child, entry, dotted)
    return problems


def _section_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The section class inside an annotation, and whether the annotation maps names to such sections."""
    if typing.get_origin(annotation) is dict:
        return _section_of(typing.get_args(annotation)[1])[0], True
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    sections = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
    return (sections[0] if sections else None), False


def _plain(error: Any) -> str:
    if error["type"] == "missing":
        return "missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message if error["type"] == "value_error" else f"{message}, got {error['input']!r:.200}"
