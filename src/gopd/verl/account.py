"""The account of a conversion: what the script says, the recipe's keys so far, and what became of each flag."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gopd.errors import BadInput
from gopd.verl.flags import BY_FLAG
from gopd.verl.overrides import Override, Reference


@dataclass(frozen=True)
class Entry:
    """What became of one flag. `note` says how, or why not."""

    flag: str
    text: str
    where: str
    note: str = ""
    key: str | None = None
    value: Any = None


@dataclass
class Conversion:
    """A recipe in the making: `keys` are dotted. Every flag of the script ends in exactly one of the three lists."""

    settings: Mapping[str, Override]
    keys: dict[str, Any] = field(default_factory=dict)
    mapped: list[Entry] = field(default_factory=list)
    idle: list[Entry] = field(default_factory=list)
    lost: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The flags that a key comes from."""
    judged: set[str] = field(default_factory=set)

    def given(self, flag: str) -> bool:
        """Whether the script sets a flag."""
        return flag in self.settings

    def get(self, flag: str) -> Any:
        """The flag's value: the script's, else verl's default."""
        seen: list[str] = []
        while flag in self.settings:
            value = self.settings[flag].value
            if not isinstance(value, Reference):
                return value
            seen.append(flag)
            flag = value.key
            if flag in seen or not (flag in self.settings or flag in BY_FLAG):
                raise self.bad(
                    seen[0], f"refers to {flag}, which is not worked out; write its value in its place"
                )
        return BY_FLAG[flag].default

    def integer(self, flag: str) -> int:
        """A whole number."""
        value: int = self._typed(flag, "a whole number", lambda v: type(v) is int)
        return value

    def number(self, flag: str) -> float:
        """A number."""
        value: float = self._typed(
            flag, "a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)
        )
        return value

    def switch(self, flag: str) -> bool:
        """True or false."""
        value: bool = self._typed(flag, "True or False", lambda v: isinstance(v, bool))
        return value

    def text(self, flag: str) -> str | None:
        """Text, or None for null."""
        value = self._typed(flag, "text", lambda v: v is None or isinstance(v, str | int | float))
        return None if value is None else str(value)

    def texts(self, flag: str) -> list[str]:
        """A list of texts; one alone counts as a list of one."""
        value = self.get(flag)
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.bad(flag, "expected text or a list of it")
        return value

    def _typed(self, flag: str, wanted: str, fits: Callable[[Any], bool]) -> Any:
        value = self.get(flag)
        if not fits(value):
            raise self.bad(flag, f"expected {wanted}")
        return value

    def bad(self, flag: str, what: str) -> BadInput:
        """An error about a flag, with its place in the script."""
        if flag not in self.settings:
            return BadInput(f"{flag} (not set, so verl's default {BY_FLAG[flag].default}): {what}")
        override = self.settings[flag]
        return BadInput(f"{override.where}: {flag}={override.text}: {what}")

    def put(self, key: str, value: Any, *flags: str, note: str = "") -> None:
        """Sets a key of the recipe from these flags."""
        self.keys[key] = value
        self.sources[key] = flags
        self.explain(key, value, *flags, note=note)

    def explain(self, key: str, value: Any, *flags: str, note: str = "") -> None:
        """Says that flags became a key, without setting it."""
        for flag in flags:
            self._judge(flag, self.mapped, note, key, value)

    def pass_over(self, why: str, *flags: str) -> None:
        """Says that flags change nothing here."""
        for flag in flags:
            self._judge(flag, self.idle, why)

    def lose(self, why: str, *flags: str) -> None:
        """Says that flags have a meaning that the recipe does not have."""
        for flag in flags:
            self._judge(flag, self.lost, why)

    def _judge(
        self, flag: str, entries: list[Entry], note: str, key: str | None = None, value: Any = None
    ) -> None:
        if flag in self.settings and flag not in self.judged:
            self.judged.add(flag)
            override = self.settings[flag]
            entries.append(Entry(flag, override.text, override.where, note, key, value))
