"""README.md and docs/*.md as their readers take them: blocks, the files that they give, the commands to type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])

FENCE = re.compile(
    r"^(?P<mark>```+)(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=mark)[ \t]*$", re.MULTILINE | re.DOTALL
)
PART = re.compile(rf"{FENCE.pattern}|^    (?P<line>gopd [^\n]*)$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"[\w.-]+\.(?:yaml|jsonl)")


@dataclass(frozen=True)
class File:
    """What the page says is in a file."""

    name: str
    text: str


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every block; one without a language is for a shell, output is called `text`."""
    for match in FENCE.finditer(page.read_text(encoding="utf-8")):
        yield match["language"], match["text"]


def steps(page: Path) -> Iterator[File | str]:
    """From top to bottom: files to write, and commands to type, without comments; a script is one command.

    A block is a file when its first line is a comment with the file's name, or when the paragraph before it begins
    with the name.
    """
    text = page.read_text(encoding="utf-8")
    for match in PART.finditer(text):
        if match["line"]:
            yield _command(match["line"])
        elif match["language"] in ("yaml", "json"):
            first = match["text"].partition("\n")[0].removeprefix("# ")
            before = text[: match.start()].rstrip().rpartition("\n\n")[2]
            if found := FILE.fullmatch(first) or re.match(rf"`({FILE.pattern})`", before):
                yield File(found[0].strip("`"), match["text"])
        elif match["language"] in ("", "bash", "sh"):
            if match["text"].startswith("#!"):
                yield match["text"]
            else:
                yield from map(_command, filter(None, match["text"].replace("\\\n", "").splitlines()))


def _command(line: str) -> str:
    return re.sub(r"\s{2,}", " ", re.sub(r"\s+# .*", "", line)).strip()
