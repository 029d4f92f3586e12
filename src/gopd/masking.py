"""Keys, tokens and passwords kept out of what is written and printed.

A secret is known by where it stands (user and password of a URL, a query such as `?token=`, behind `Bearer`), by its
shape (tokens of the Hub, of GitHub, of some services), or by its value: what the environment holds under a name such
as HF_TOKEN or WANDB_API_KEY. A secret of none of these kinds is not found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

MASK = "***"
SHORTEST = 8
"""Characters; shorter values of the environment are words that stand in any text."""

_WORDS = r"(?:key|token|secret|pass(?:word|wd|phrase)?|credentials?|signature|sig)"
_NAME = re.compile(rf"(?:.*[_-])?(?:api)?{_WORDS}", re.IGNORECASE)
_BEHIND = (
    re.compile(r"(?<=://)[^\s/?#'\"<>]+(?=@)"),
    re.compile(rf"(?<=[?&])(?P<before>[\w.-]*{_WORDS}=)[^&\s'\"<>]+", re.IGNORECASE),
    re.compile(r"(?P<before>\bBearer\s+)[\w.~+/=-]{8,}"),
)
_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{20,}|glpat-[\w-]{20,}|AKIA[0-9A-Z]{16}"
    r"|sk-(?:[A-Za-z0-9]{20,}|(?:proj|ant|or)-[\w-]{20,}))"
)


def mask(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text with `***` in place of every secret that is found; `environment` is this process's unless given."""
    for secret in _values(os.environ if environment is None else environment):
        text = text.replace(secret, MASK)
    for pattern in _BEHIND:
        text = pattern.sub(lambda match: match.groupdict().get("before", "") + MASK, text)
    return _SHAPES.sub(MASK, text)


def masked(value: Any, environment: Mapping[str, str] | None = None) -> Any:
    """The same for every text in a tree of plain values, keys aside."""
    if isinstance(value, str):
        return mask(value, environment)
    if isinstance(value, Mapping):
        return {key: masked(part, environment) for key, part in value.items()}
    return type(value)(masked(p, environment) for p in value) if isinstance(value, list | tuple) else value


def refuse_secrets(tree: Mapping[str, Any]) -> None:
    """Raises ValueError, which names the keys, where a recipe's plain values hold a secret."""
    if keys := _keys_with_secrets(tree, ""):
        raise ValueError(
            f"a password, key or token in {', '.join(keys)}: recipes are written and shown, so they must hold none; "
            "leave it in the environment (HF_TOKEN for the Hub; server.api_key_env names the variable of a server's "
            "key)"
        )


def _keys_with_secrets(tree: Mapping[str, Any], prefix: str) -> list[str]:
    found = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += _keys_with_secrets(value, f"{prefix}{key}.")
        elif masked(value) != value:
            found.append(f"{prefix}{key}")
    return found


def _values(environment: Mapping[str, str]) -> list[str]:
    """What variables with such a name hold, the longest first, as one may be part of another."""
    found = {value for name, value in environment.items() if _NAME.fullmatch(name) and len(value) >= SHORTEST}
    return sorted(found, key=lambda value: (-len(value), value))
