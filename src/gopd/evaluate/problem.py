"""One problem of a suite, and the options that change how suites are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gopd.errors import BadInput
from gopd.types import Verdict

Golds = Literal["corrected", "as-published"]
Row = tuple[str, Mapping[str, Any]]
"""A row's place, for error messages, and its fields."""
Advance = Callable[[int, int], None]
"""Called with (done, of how many)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem as it is asked, and what judges a response to it."""

    id: str
    text: str
    judge: Callable[[str], Verdict]


@dataclass(frozen=True, slots=True)
class Reading:
    """How the rows of a suite are read: golds as published or corrected; LiveCodeBench's own verdict rules or ours."""

    golds: Golds = "corrected"
    lcb_compat: bool = False
    limit: int | None = None
    """Only the first so many problems."""


def parsed(rows: Iterable[tuple[str, str | Mapping[str, Any]]]) -> Iterable[Row]:
    """Rows with their JSON read. Raises BadInput with the place of a malformed one."""
    for where, row in rows:
        if isinstance(row, str):
            try:
                row = json.loads(row)
            except ValueError as error:
                raise BadInput(f"{where}: not JSON: {error}") from error
        if not isinstance(row, Mapping):
            raise BadInput(
                f"{where}: found {type(row).__name__}, expected an object with the problem's fields"
            )
        yield where, row


def field(where: str, row: Mapping[str, Any], *names: str) -> Any:
    """The first of the columns that is there. Raises BadInput when none is."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise BadInput(f"{where}: has no {' or '.join(names)}; its columns are {', '.join(row) or 'none'}")
