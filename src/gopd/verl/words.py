"""The words of a shell script before they are expanded."""

from __future__ import annotations

import re
from dataclasses import dataclass

ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(\+?=)")


@dataclass(frozen=True, slots=True)
class Text:
    """Characters that stand for themselves."""

    value: str
    quoted: bool


@dataclass(frozen=True, slots=True)
class Parameter:
    """`$name`, `${name}`, `${name[@]}`, or with an operation on it: `${name:-word}`."""

    name: str
    quoted: bool
    operation: str = ""
    operand: Word | None = None
    items: str = ""
    """`@` or `*` where the whole array is meant."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`$((expression))`."""

    expression: Word
    quoted: bool


@dataclass(frozen=True, slots=True)
class Opaque:
    """A construct whose value is known only to those who run the script."""

    construct: str
    quoted: bool


Part = Text | Parameter | Arithmetic | Opaque


@dataclass(frozen=True, slots=True)
class Word:
    """One word; `array` is set for `name=(…)`, whose parts then are the name and the sign."""

    parts: tuple[Part, ...]
    line: int
    array: tuple[Word, ...] | None = None

    @property
    def plain(self) -> str | None:
        """The text of a word without quotes and expansions; None for others."""
        texts = [p.value for p in self.parts if isinstance(p, Text) and not p.quoted]
        return "".join(texts) if len(texts) == len(self.parts) else None

    @property
    def assigns(self) -> re.Match[str] | None:
        """Name and sign, where the word reads `name=…` or `name+=…`."""
        first = self.parts[0] if self.parts else None
        return ASSIGNMENT.match(first.value) if isinstance(first, Text) and not first.quoted else None


@dataclass(frozen=True, slots=True)
class Operator:
    """What separates commands; newlines are `\\n`."""

    text: str
    line: int
