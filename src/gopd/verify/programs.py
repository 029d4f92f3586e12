"""Finding the program in a response."""

from __future__ import annotations

import re
from collections.abc import Iterator

_OPENING = re.compile(r"```[ \t]*([A-Za-z0-9_+-]*)$")
_PYTHON = {"python", "python3", "py"}


def last_program(response: str) -> str | None:
    """The last finished Python code block; without any, the last finished block that names no language."""
    blocks = list(_blocks(response))
    python = [text for language, text in blocks if language in _PYTHON]
    bare = [text for language, text in blocks if not language]
    found = python or bare
    return found[-1] if found else None


def _blocks(response: str) -> Iterator[tuple[str, str]]:
    """Finished code blocks, as (language, text). A block opened inside an unfinished one starts afresh."""
    language, lines = "", None
    for line in response.split("\n"):  # not splitlines: form feeds and the like are part of the program
        opening = _OPENING.search(line.rstrip())
        if opening is not None and (lines is None or opening.group(1)):
            language, lines = opening.group(1).lower(), list[str]()
        elif lines is not None and line.lstrip().startswith("```"):
            yield language, "\n".join(lines) + "\n"
            lines = None
        elif lines is not None:
            lines.append(line)


def between_last_fences(response: str) -> str | None:
    """What is between the last two lines with a fence, as LiveCodeBench's own grader takes it."""
    lines = response.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else None
