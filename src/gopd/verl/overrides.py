"""Hydra's command line: `a.b=c`, `+a.b=c`, `++a.b=c`, `~a.b`, and the values that stand behind the sign."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gopd.errors import BadInput
from gopd.verl.script import Argument

OVERRIDE = re.compile(
    r"(?P<sign>~|\+\+|\+)?(?P<key>[A-Za-z_][\w.\-/@:]*)(?P<equals>=(?P<value>.*))?", re.DOTALL
)
NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?)")
INTEGER = re.compile(r"[-+]?\d[\d_]*")
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True)
class Override:
    """One setting of the command line. `text` is the value as it was written."""

    key: str
    value: Any
    text: str
    where: str


@dataclass(frozen=True)
class Reference:
    """A value that is another key's, `${a.b}`."""

    key: str


@dataclass
class Overrides:
    """What a command line says: the last override of each key, and what is no setting at all."""

    settings: dict[str, Override]
    other: list[tuple[str, str]]
    """Options and deletions, with what is to be said about them."""
    warnings: list[str]


def read_overrides(arguments: Iterable[Argument]) -> Overrides:
    """Sorts the words of a command line. Raises BadInput for a word that Hydra would refuse too."""
    found = Overrides({}, [], [])
    option = False
    for argument in arguments:
        if argument.text.startswith("-"):
            found.other.append(
                (argument.text, "an option of Hydra; the defaults of ppo_trainer.yaml are used")
            )
            option = argument.text in ("--config-name", "--config-path", "--config-dir", "-cn", "-cp", "-cd")
        elif option:
            name, why = found.other.pop()
            found.other.append((f"{name} {argument.text}", why))
            option = False
        else:
            _take(argument, found)
    return found


def _take(argument: Argument, found: Overrides) -> None:
    match = OVERRIDE.fullmatch(argument.text)
    if match is None or (match["equals"] is None and match["sign"] != "~"):
        raise BadInput(
            f"{argument.where}: {argument.text!r} is no override; expected key=value, +key=value, ++key=value or ~key"
        )
    key, sign = match["key"], match["sign"]
    if sign == "~":
        gone = [name for name in found.settings if name == key or name.startswith(f"{key}.")]
        for name in gone:
            del found.settings[name]
        said = f"takes back {', '.join(gone)}" if gone else "deletes a key of verl's configuration"
        found.other.append((argument.text, said))
        return
    if key in found.settings:
        earlier = found.settings.pop(key)
        found.warnings.append(
            f"{argument.where}: {key}={match['value']} replaces {earlier.text} of {earlier.where}"
            + ("; Hydra refuses + for a key that is there" if sign == "+" else "")
        )
    value = _Values(match["value"], argument).whole()
    for name, inner in _leaves(key, value):
        found.settings[name] = Override(
            name, inner, match["value"] if name == key else repr(inner), argument.where
        )


def _leaves(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    """A mapping as a value sets each of its keys."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner)
    else:
        yield key, value


class _Values:
    """Reads one value: quoted text, lists, mappings, null, true, false, numbers, and text for anything else."""

    def __init__(self, text: str, argument: Argument) -> None:
        self.text, self.argument, self.at = text, argument, 0

    def whole(self) -> Any:
        """The value; everything must belong to it."""
        try:
            value = self._value("")
        except RecursionError as error:
            raise self._bad("brackets within brackets, too deep to be meant") from error
        if self.at < len(self.text):
            if self.text[self.at] == ",":
                raise self._bad("several values, which is a sweep: one command for each of them; choose one")
            raise self._bad(f"what is {self.text[self.at :]!r} behind the value?")
        return value

    def _bad(self, what: str) -> BadInput:
        return BadInput(f"{self.argument.where}: {self.argument.text}: {what}")

    def _blanks(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def _value(self, ends: str) -> Any:
        self._blanks()
        char = self.text[self.at : self.at + 1]
        if char == "[":
            return self._list()
        if char == "{":
            return self._mapping()
        value = self._quoted(char) if char and char in "'\"" else self._primitive(ends)
        self._blanks()
        if isinstance(value, str) and "${" in value:
            match = REFERENCE.fullmatch(value)
            if match is None:
                raise self._bad("a value made of other keys is not worked out; write it in their place")
            return Reference(match.group(1))
        return value

    def _quoted(self, quote: str) -> str:
        end = self.at + 1
        while end < len(self.text) and self.text[end] != quote:
            end += 2 if self.text[end] == "\\" and self.text[end + 1 : end + 2] in ("\\", quote) else 1
        if end >= len(self.text):
            raise self._bad(f"{quote} is never closed")
        inner = self.text[self.at + 1 : end]
        self.at = end + 1
        return inner.replace("\\" + quote, quote).replace("\\\\", "\\")

    def _primitive(self, ends: str) -> Any:
        begin = self.at
        while self.at < len(self.text) and self.text[self.at] not in (ends or ","):
            reference = REFERENCE.match(self.text, self.at)
            self.at = reference.end() if reference else self.at + 1
        try:
            return _typed(self.text[begin : self.at].strip())
        except ValueError as error:
            raise self._bad("a number that cannot be read") from error

    def _list(self) -> list[Any]:
        items: list[Any] = []
        self.at += 1
        while not self._closed("]", bool(items)):
            items.append(self._value(",]"))
        return items

    def _mapping(self) -> dict[str, Any]:
        items: dict[str, Any] = {}
        self.at += 1
        while not self._closed("}", bool(items)):
            self._blanks()
            char = self.text[self.at : self.at + 1]
            key = str(self._quoted(char) if char and char in "'\"" else self._primitive(":,}"))
            self._blanks()
            if self.text[self.at : self.at + 1] != ":":
                raise self._bad(f"expected {{key: value}}, found no colon behind {key!r}")
            self.at += 1
            items[key] = self._value(",}")
        return items

    def _closed(self, bracket: str, more: bool) -> bool:
        """Steps over the bracket or the comma before the next item."""
        self._blanks()
        char = self.text[self.at : self.at + 1]
        if char == bracket:
            self.at += 1
            self._blanks()
            return True
        if not char or (more and char != ","):
            raise self._bad(f"{bracket} is missing")
        if more:
            self.at += 1
        return False


def _typed(text: str) -> Any:
    lower = text.lower()
    if lower in ("null", ""):
        return None if lower else ""
    if lower in ("true", "false"):
        return lower == "true"
    if INTEGER.fullmatch(text):
        return int(text)
    return float(text) if NUMBER.fullmatch(text) else text
