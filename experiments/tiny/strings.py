"""String problems: functions of two string operations and an ending."""

from __future__ import annotations

import random

from programs import LETTERS, Ending, Primitive, Toolbox

ALPHABET = "aaabbccddeeefghioABCDEGHO0123456789"
VOWELS = "aeiou"


def _kept(s: str, keep: str) -> str:
    return "".join(filter(keep.__contains__, s))


def _sorted(s: str) -> str:
    return "".join(chr(i) * sum(ord(c) == i for c in s) for i in range(128))


def _without_repeats(s: str) -> str:
    return "".join(c for i, c in enumerate(s) if c not in s[:i])


def _upper(s: str) -> str:
    return "".join(chr(ord(c) - 32) if "a" <= c <= "z" else c for c in s)


def _lower(s: str) -> str:
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in s)


PRIMITIVES = {
    "upper": Primitive("puts it in upper case", "s.upper()", lambda s, _: _upper(s), (0, 0), "lower"),
    "lower": Primitive("puts it in lower case", "s.lower()", lambda s, _: _lower(s), (0, 0), "upper"),
    "swap": Primitive(
        "swaps upper and lower case",
        "s.swapcase()",
        lambda s, _: "".join(_lower(c) if c != _lower(c) else _upper(c) for c in s),
        (0, 0),
        "upper",
    ),
    "reverse": Primitive("reverses it", "s[::-1]", lambda s, _: "".join(reversed(s)), (0, 0), "sort"),
    "sort": Primitive(
        "sorts its characters", "''.join(sorted(s))", lambda s, _: _sorted(s), (0, 0), "reverse"
    ),
    "first": Primitive(
        "takes the first {k} characters",
        "s[:{k}]",
        lambda s, k: "".join(c for i, c in enumerate(s) if i < k),
        (1, 7),
        "skip",
    ),
    "last": Primitive(
        "takes the last {k} characters",
        "s[-{k}:]",
        lambda s, k: "".join(c for i, c in enumerate(s) if len(s) - i <= k),
        (1, 7),
        "first",
    ),
    "skip": Primitive(
        "skips the first {k} characters",
        "s[{k}:]",
        lambda s, k: "".join(c for i, c in enumerate(s) if i >= k),
        (1, 7),
        "first",
    ),
    "second": Primitive(
        "takes every second character",
        "s[::2]",
        lambda s, _: "".join(c for i, c in enumerate(s) if i % 2 == 0),
        (0, 0),
        "distinct",
    ),
    "distinct": Primitive(
        "removes repeats", "''.join(dict.fromkeys(s))", lambda s, _: _without_repeats(s), (0, 0), "second"
    ),
    "repeat": Primitive(
        "repeats it {k} times", "s * {k}", lambda s, k: "".join(s for _ in range(k)), (2, 5), "first"
    ),
    "remove": Primitive(
        "removes every {c}",
        "s.replace('{c}', '')",
        lambda s, k: "".join(c for c in s if c != LETTERS[k]),
        (1, 9),
        "star",
    ),
    "star": Primitive(
        "replaces every {c} by a star",
        "s.replace('{c}', '*')",
        lambda s, k: "".join("*" if c == LETTERS[k] else c for c in s),
        (1, 9),
        "remove",
    ),
    "vowels": Primitive(
        "keeps the vowels",
        "''.join(c for c in s if c in 'aeiou')",
        lambda s, _: _kept(s, VOWELS),
        (0, 0),
        "digits",
    ),
    "digits": Primitive(
        "keeps the digits",
        "''.join(c for c in s if c.isdigit())",
        lambda s, _: _kept(s, "0123456789"),
        (0, 0),
        "vowels",
    ),
    "front": Primitive(
        "puts {c} in front", "'{c}' + s", lambda s, k: "".join((LETTERS[k], s)), (1, 9), "end"
    ),
    "end": Primitive(
        "puts {c} at the end", "s + '{c}'", lambda s, k: "".join((s, LETTERS[k])), (1, 9), "front"
    ),
}
ENDINGS = {
    "string": Ending("", "s", lambda s: s, "len"),
    "len": Ending(" and returns its length", "len(s)", lambda s: sum(1 for _ in s), "kinds"),
    "count": Ending(" and counts the a's", "s.count('a')", lambda s: sum(c == "a" for c in s), "len"),
    "kinds": Ending(
        " and counts different characters", "len(set(s))", lambda s: len(_without_repeats(s)), "len"
    ),
}


def _draw(rng: random.Random, last: bool) -> str:
    """Letters and digits; the last input repeats itself."""
    length = 5 if last else rng.randint(6, 10)
    return "".join(rng.choice(ALPHABET) for _ in range(length)) * (1 + last)


STRINGS = Toolbox("s", PRIMITIVES, ENDINGS, _draw)
