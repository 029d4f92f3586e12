"""The simple commands of a shell script, each with the construct that it stands in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gopd.errors import BadInput
from gopd.verl.words import Operator, Word

OPENERS = {
    "if": "fi",
    "while": "done",
    "until": "done",
    "for": "done",
    "select": "done",
    "case": "esac",
    "{": "}",
}
STARTERS = ("then", "else", "elif", "do", "!", "time", "coproc")


@dataclass(frozen=True)
class Command:
    """A simple command."""

    words: list[Word]
    line: int
    after: str
    """The operator before it."""
    inside: str | None
    """What it stands in, e.g. "`if` of line 4"."""


def commands(tokens: Sequence[Word | Operator], name: str) -> Iterator[Command]:
    """Simple commands, each with the construct that it stands in."""
    inside: list[tuple[str, str, int]] = []
    words: list[Word] = []
    after = "\n"
    for token in [*tokens, Operator("\n", tokens[-1].line if tokens else 1)]:
        if isinstance(token, Word):
            if words and words[0].plain == "function" and token.plain == "{":
                inside.append(("{", "}", token.line))
                words = []
            elif words or not _reserved(token, inside):
                words.append(token)
            continue
        if words and words[0].plain == "[[" and words[-1].plain != "]]" and token.text != "\n":
            continue  # inside [[ … ]] operators compare
        if words and not (token.text == "(" or (token.text == ")" and inside and inside[-1][1] == "esac")):
            place = f"`{inside[-1][0]}` of line {inside[-1][2]}" if inside else None
            yield Command(words, words[0].line, after, place)
        words = []
        if token.text == "(":
            inside.append(("( … )", ")", token.line))
        elif token.text == ")" and inside and inside[-1][1] == ")":
            inside.pop()
        after = token.text
    if inside:
        raise BadInput(
            f"{name}:{inside[-1][2]}: `{inside[-1][0]}` is opened here and never closed; mend the script"
        )


def _reserved(word: Word, inside: list[tuple[str, str, int]]) -> bool:
    """Whether a word at a command's start is one of the shell's own, which open and close constructs."""
    plain = word.plain or ""
    if plain in ("for", "select", "case"):
        inside.append((plain, OPENERS[plain], word.line))
        return False
    if plain in OPENERS:
        inside.append((plain, OPENERS[plain], word.line))
    elif inside and plain == inside[-1][1]:
        inside.pop()
    elif plain not in STARTERS:
        return False
    return True
