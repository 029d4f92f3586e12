"""Rows in, prompts out.

The published schema is read as is (`data_source`, `prompt`, `reward_model.ground_truth`,
`extra_info.opd_teacher`); any other by naming columns. A dotted name reaches into nested fields; a column
whose own name is the dotted one comes first. Every row is checked before any work starts.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gopd.errors import BadInput
from gopd.rows import raw_rows
from gopd.sections import SourceSection, ValidationSection
from gopd.types import Message, Prompt, VerifierName

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
SHOWN = 5
"""How many different problems of rows, and rows for each, one message shows."""


def load_prompts(
    source: SourceSection, *, routes: Sequence[str] = (), need_response: bool = False
) -> list[Prompt]:
    """Reads and checks the rows of a source, in order.

    `routes` names the teachers: each prompt gets one, from its own column, else `source.route`, else the only
    teacher there is; without `routes` (SFT) every route is None. `need_response` asks for the demonstration;
    then verifier "auto" means none. Blank lines of a JSONL file are skipped; lines and rows count from 1.
    `source.limit` stops the reading: later rows are not looked at. Rows that `source.keep_sources` leaves out do not
    count.

    Raises BadInput for anything that cannot be read or used; bad rows are collected, the first few shown with
    file and line.
    """
    section = "validation" if isinstance(source, ValidationSection) else "data"
    if bool(source.files) == bool(source.hub):
        given = "has both" if source.files else "has neither"
        raise BadInput(f"{section}: give one of files and hub; it {given}")
    if routes and source.route is not None and source.route not in routes:
        raise BadInput(f"{section}.route: {_no_such_route(source.route, routes)}")
    prompts: list[Prompt] = []
    problems: dict[str, list[str]] = {}
    others: dict[str, None] = {}
    taken = 0
    for where, raw in raw_rows(source):
        try:
            row = _parse(raw)
            if not _wanted(row, source, others):
                continue
            prompts.append(_prompt(row, where, len(prompts), source, routes, need_response))
        except BadInput as problem:
            problems.setdefault(str(problem), []).append(where)
        taken += 1
        if taken == source.limit:
            break
    if problems:
        raise BadInput(_summary(problems, len(prompts)))
    if source.keep_sources and not prompts:
        raise BadInput(
            f"{section}.keep_sources: no row is of {', '.join(source.keep_sources)}; there are: {', '.join(others)}"
        )
    return prompts


def reach(row: Mapping[str, Any], name: str) -> Any:
    """The field of a row that a dotted name says, or None where it is absent or null."""
    if name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    inner = row.get(head)
    return reach(inner, rest) if dot and isinstance(inner, Mapping) else None


def column_names(row: Mapping[str, Any]) -> str:
    """The columns of a row for an error message, nested ones dotted, one level deep."""
    names: list[str] = []
    for name, value in row.items():
        names += [f"{name}.{inner}" for inner in value] if isinstance(value, Mapping) and value else [name]
    shown = 30
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return (", ".join(names[:shown]) or "none") + more


def as_text(value: Any) -> str:
    """A field as text: strings as they are, lists and mappings as JSON, anything else by `str`."""
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _parse(raw: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(raw, str):
        return raw
    try:
        row = json.loads(raw)
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg} at column {error.colno}; each line must be one object"
        raise BadInput(message) from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise BadInput(f"cannot be read as JSON: {error}; mend the line or take it out") from error
    if not isinstance(row, dict):
        raise BadInput(f"expected an object with columns, found {_kind(row)}")
    if _SURROGATE.search(raw):
        _check_text(row)
    return row


def _check_text(row: Any) -> None:
    """BadInput for half surrogates, as `"\\ud800"` has one, which no tokenizer and no file takes."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"holds half a character, \\u{ord(error.object[error.start]):04x}, which is no text; mend the row"
        ) from error


def _prompt(
    row: Mapping[str, Any],
    where: str,
    index: int,
    source: SourceSection,
    routes: Sequence[str],
    need_response: bool,
) -> Prompt:
    """One checked row; problems are BadInput without the row's place."""
    data_source = _text(row, source.columns.data_source, "data_source")
    if data_source is None:
        data_source = source.data_source
    verifier = _verifier(source, data_source, need_response)
    response = _text(row, source.columns.response, "response") if need_response else None
    if need_response and not response:
        raise BadInput(_missing(row, "response", source.columns.response))
    return Prompt(
        index=index,
        where=where,
        messages=_messages(row, source.columns.prompt),
        data_source="unknown" if data_source is None else data_source,
        verifier=verifier,
        ground_truth=_ground_truth(row, source, verifier),
        route=_route(row, source, routes) if routes else None,
        response=response,
        fields=row,
        response_ended=not need_response or _flag(row, source.columns.finished),
    )


def _wanted(row: Mapping[str, Any], source: SourceSection, others: dict[str, None]) -> bool:
    """Whether a row's data source is one to keep; those that are not are gathered in `others`."""
    if not source.keep_sources:
        return True
    name = _text(row, source.columns.data_source, "data_source") or source.data_source or "unknown"
    if name not in source.keep_sources:
        others[name] = None
    return name in source.keep_sources


def _messages(row: Mapping[str, Any], column: str) -> tuple[Message, ...]:
    value = reach(row, column)
    if value is None:
        raise BadInput(_missing(row, "prompt", column))
    if isinstance(value, str):
        return ({"role": "user", "content": value},)
    if not isinstance(value, list):
        raise BadInput(f"{column} must be text or a list of chat messages, found {_kind(value)}")
    if not value:
        raise BadInput(f"{column} is an empty list; it must end with a user message")
    messages = tuple(_message(message, f"{column}[{turn}]") for turn, message in enumerate(value))
    if messages[-1]["role"] != "user":
        raise BadInput(
            f"{column} must end with a user message, the last one is from {messages[-1]['role']!r}; "
            "cut the row there, or put a demonstration into the response column"
        )
    return messages


def _message(value: Any, name: str) -> Message:
    if not isinstance(value, Mapping):
        raise BadInput(f"{name} must be a message with role and content, found {_kind(value)}")
    message = {key: entry for key, entry in value.items() if entry is not None}
    if absent := [key for key in ("role", "content") if key not in message]:
        raise BadInput(f"{name} has no {' and no '.join(absent)}; a message needs role and content")
    for key, entry in message.items():
        if not isinstance(entry, str):
            raise BadInput(f"{name}.{key} must be text, found {_kind(entry)}")
    return message


def _verifier(source: SourceSection, data_source: str | None, need_response: bool) -> VerifierName:
    if source.verifier != "auto":
        return source.verifier
    if need_response:
        return "none"
    if data_source is None:
        raise BadInput(
            f"no verifier can be chosen: there is no column {source.columns.data_source!r} and no general "
            "data_source; set verifier (math, code or none), data_source or columns.data_source"
        )
    from gopd.verify import verifier_for

    return verifier_for(data_source)


def _ground_truth(row: Mapping[str, Any], source: SourceSection, verifier: VerifierName) -> str | None:
    column, marker = source.columns.ground_truth, source.ground_truth_after
    value = reach(row, column)
    text = None if value is None else as_text(value)
    if text is not None and marker is not None:
        _, found, text = text.rpartition(marker)
        text = text.strip()
        if not found or not text:
            raise BadInput(f"{column} has nothing after {marker!r}; mend the row or ground_truth_after")
    if verifier != "none":
        if text is None:
            raise BadInput(f"{_missing(row, 'ground_truth', column)}; verifier: none does without")
        from gopd.verify import check_ground_truth

        check_ground_truth(verifier, text)
    return text


def _route(row: Mapping[str, Any], source: SourceSection, routes: Sequence[str]) -> str:
    route = _text(row, source.columns.route, "route")
    if route is None:
        route = source.route
    if route is None:
        if len(routes) == 1:
            return routes[0]
        raise BadInput(
            f"names no teacher: nothing in column {source.columns.route!r}; known: {', '.join(routes)}; "
            "fill that column, or set columns.route or route"
        )
    if route not in routes:
        raise BadInput(_no_such_route(route, routes))
    return route


def _no_such_route(route: str, routes: Sequence[str]) -> str:
    near = difflib.get_close_matches(route, routes, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"route {route!r} names no teacher; known: {', '.join(routes)}{hint}"


def _text(row: Mapping[str, Any], column: str, meaning: str) -> str | None:
    value = reach(row, column)
    if value is not None and not isinstance(value, str):
        raise BadInput(
            f"{column} must be text, found {_kind(value)}; mend it or name another columns.{meaning}"
        )
    return value


def _flag(row: Mapping[str, Any], column: str) -> bool:
    """True where the column is absent or null."""
    value = reach(row, column)
    if value is not None and not isinstance(value, bool):
        raise BadInput(
            f"{column} must be true or false, found {_kind(value)}; mend it or name another columns.finished"
        )
    return value is not False


def _missing(row: Mapping[str, Any], meaning: str, column: str) -> str:
    return f"nothing in column {column!r}; columns: {column_names(row)}; set columns.{meaning}"


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true/false", type(None): "null"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _summary(problems: Mapping[str, list[str]], good: int) -> str:
    """Each problem once, with the first rows that have it and how many others do."""
    bad = sum(map(len, problems.values()))
    lines = []
    for problem, places in list(problems.items())[:SHOWN]:
        others = f" and {len(places) - SHOWN} more rows" if len(places) > SHOWN else ""
        lines.append(f"{', '.join(places[:SHOWN])}{others}: {problem}")
    if bad == 1:
        return lines[0]
    if len(problems) > SHOWN:
        lines.append(f"and {len(problems) - SHOWN} more problems")
    return f"{bad} of {bad + good} rows cannot be used:\n" + "\n".join(f"  {line}" for line in lines)
