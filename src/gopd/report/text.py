"""Text from outside, made safe to look at: what would be invisible or reorder the page is shown by its name.

Escaping for HTML is left to where HTML is made; here is what escaping does not mend.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_SHOWN = frozenset("\n\t\u200d")
"""Control characters that stay: line feed, tabulator, and the joiner inside emoji."""
_NAMED = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
"""Categories that are shown by their numbers: controls (ANSI's escape), formats (bidirectional marks), half
surrogates, private use, line and paragraph separators."""
_JSON_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def visible(text: str) -> str:
    """The text with control and bidirectional characters as ⟨U+202E⟩."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible_character(c) for c in text)


def _visible_character(character: str) -> str:
    if character in _SHOWN or unicodedata.category(character) not in _NAMED:
        return character
    return f"⟨U+{ord(character):04X}⟩"


def script_json(value: Any) -> str:
    """JSON that may stand inside a `<script>` element, whatever strings it holds."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: _JSON_ESCAPES[match[0]], text)


# --- tokens ---------------------------------------------------------------------------------------------------------

Reading = Callable[[str], bytes]
"""From a token as the vocabulary writes it to the bytes that it stands for."""


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others follow from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_ALPHABET = _byte_alphabet()


def _plain(token: str) -> bytes:
    return token.encode("utf-8", "surrogatepass")


def _byte_level(token: str) -> bytes:
    return b"".join(bytes([_ALPHABET[c]]) if c in _ALPHABET else _plain(c) for c in token)


def _sentence_piece(token: str) -> bytes:
    if match := re.fullmatch("<0x([0-9A-F]{2})>", token):
        return bytes([int(match[1], 16)])
    return _plain(token.replace("▁", " "))


READINGS: Sequence[Reading] = (_plain, _byte_level, _sentence_piece)
"""How vocabularies write tokens: as they are, with a letter for every byte, with ▁ for a space."""


def reading(rows: Sequence[tuple[Sequence[str], str]]) -> Reading:
    """The reading by which most rows' tokens hold their response; the first one where none does."""

    def fits(way: Reading) -> int:
        return sum(
            response in b"".join(map(way, tokens)).decode(errors="replace") for tokens, response in rows
        )

    return max(READINGS, key=fits)


def shown_token(raw: bytes) -> str:
    """A token's text, visible; bytes that are no whole characters as ⟨E2 82⟩."""
    try:
        return visible(raw.decode())
    except UnicodeDecodeError:
        return f"⟨{raw.hex(' ').upper()}⟩"


def shown_vocabulary(vocabulary: Mapping[int, str], way: Reading) -> dict[int, str]:
    """The tokens of a vocabulary as the report shows them."""
    return {token_id: shown_token(way(token)) for token_id, token in vocabulary.items()}
