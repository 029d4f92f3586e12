"""A shell script as commands of words, as bash would read it. Nothing is run, and nothing is expanded yet.

Covered: quotes, escapes, line continuations, comments, parameters and their `:-` family, arithmetic, arrays,
redirections, here-documents. What is not (command substitution and its like) becomes an `Opaque` part, so that only
those who need its value stumble over it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from gopd.errors import BadInput
from gopd.verl.words import Arithmetic, Opaque, Operator, Parameter, Part, Text, Word

OPERATORS = ("&&", "||", ";;", "|&", "&", "|", ";", "(", ")", "\n")
REDIRECTION = re.compile(r"[0-9]*(<<<|<<-|<<|<>|<&|>&|>>|>\||<|>)|&>>|&>")
PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9@*#?$!-]")
BRACED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-])(\[([@*])\])?")
OPERATION = re.compile(r":?[-=+?]")
BROKEN = re.compile(r"\\[ \t]+(#[^\n]*)?(\n|$)")
"""A backslash that was meant to continue a line, and escapes the blank behind it instead."""


@dataclass
class Reader:
    """Reads one script; `name` is for messages."""

    text: str
    name: str
    at: int = 0
    line: int = 1
    broken: list[int] = field(default_factory=list)
    """Lines whose last backslash has a blank or a comment behind it. To bash it is no continuation, and the comment's
    words are arguments; nobody means that, so here it is one."""
    documents: list[tuple[str, bool]] = field(default_factory=list)
    """Ends of here-documents that begin after this line, and whether tabs before them count for nothing."""

    def tokens(self) -> list[Word | Operator]:
        """The whole script. Raises BadInput for a quote or a bracket that never ends."""
        found: list[Word | Operator] = []
        while True:
            self._skip_blanks()
            if self.at >= len(self.text):
                return found
            if self.text.startswith(("<(", ">("), self.at):
                start = self.line
                self._take()
                found.append(Word((self._balanced("(", ")", "process substitution <(…)", False),), start))
            elif match := REDIRECTION.match(self.text, self.at):
                self._redirection(match)
            elif operator := self._operator():
                found.append(Operator(operator, self.line))
                self._take(len(operator))
                if operator == "\n":
                    self._skip_documents()
            else:
                found.append(self._word())

    def _operator(self) -> str | None:
        return next((o for o in OPERATORS if self.text.startswith(o, self.at)), None)

    def _take(self, count: int = 1) -> str:
        taken = self.text[self.at : self.at + count]
        self.at += count
        self.line += taken.count("\n")
        return taken

    def _skip_blanks(self) -> None:
        """Blanks, continued lines, and a comment up to the end of its line."""
        while self.at < len(self.text):
            if self.text.startswith("\\\n", self.at):
                self._take(2)
            elif match := BROKEN.match(self.text, self.at):
                self.broken.append(self.line)
                self._take(len(match.group()))
            elif self.text[self.at] in " \t":
                self._take()
            elif self.text[self.at] == "#":
                end = self.text.find("\n", self.at)
                self._take((len(self.text) if end < 0 else end) - self.at)
            else:
                return

    def _redirection(self, match: re.Match[str]) -> None:
        """Redirections leave the words of a command alone; here-documents are skipped."""
        self._take(len(match.group()))
        self._skip_blanks()
        target = self._word()
        if (match.group(1) or "") in ("<<", "<<-"):
            end = "".join(part.value for part in target.parts if isinstance(part, Text))
            self.documents.append((end, match.group(1) == "<<-"))

    def _skip_documents(self) -> None:
        for end, tabs in self.documents:
            while self.at < len(self.text):
                newline = self.text.find("\n", self.at)
                line = self._take((len(self.text) if newline < 0 else newline + 1) - self.at).rstrip("\n")
                if (line.lstrip("\t") if tabs else line) == end:
                    break
        self.documents.clear()

    def _word(self) -> Word:
        line, parts = self.line, self._parts(" \t\n;&|()<>")
        word = Word(parts, line)
        sign = word.assigns
        if sign and len(parts) == 1 and sign.end() == len(word.plain or "") and self._next() == "(":
            return Word(parts, line, self._array())
        return word

    def _array(self) -> tuple[Word, ...]:
        start = self.line
        self._take()
        words: list[Word] = []
        while True:
            self._skip_blanks()
            if self.at >= len(self.text):
                raise self._unended("(", start)
            if self._next() == ")":
                self._take()
                return tuple(words)
            if self._next() == "\n":
                self._take()
            elif self._next() in ";&|()<>":
                raise BadInput(
                    f"{self.name}:{self.line}: {self._next()!r} cannot stand in an array; quote it or mend the script"
                )
            else:
                words.append(self._word())

    def _next(self) -> str:
        return self.text[self.at : self.at + 1]

    def _parts(self, ends: str, *, quoted: bool = False, nested: bool = False) -> tuple[Part, ...]:
        """Parts up to one of the characters in `ends`. `quoted`: inside double quotes; `nested`: inside `${…}`."""
        parts: list[Part] = []
        start = self.line
        while self.at < len(self.text) and self._next() not in ends:
            char = self._next()
            if char == "\\":
                parts += self._escape(quoted, nested)
            elif char == "'" and not quoted:
                parts.append(self._single())
            elif char == '"' and not (quoted and not nested):
                self._take()
                inner = self._parts('"', quoted=True)
                self._end('"', start)
                parts += inner or (Text("", quoted=True),)
            elif char == "$":
                parts += self._dollar(quoted)
            elif char == "`":
                parts.append(self._backticks(quoted))
            else:
                self._add(parts, self._take(), quoted)
        return tuple(parts)

    @staticmethod
    def _add(parts: list[Part], text: str, quoted: bool) -> None:
        last = parts[-1] if parts else None
        if isinstance(last, Text) and last.quoted == quoted:
            parts[-1] = Text(last.value + text, quoted)
        else:
            parts.append(Text(text, quoted))

    def _escape(self, quoted: bool, nested: bool) -> list[Part]:
        following = self.text[self.at + 1 : self.at + 2]
        self._take(1 + len(following))
        if following == "\n":
            return []
        if quoted and following not in ('$`"\\}' if nested else '$`"\\'):
            return [Text("\\" + following, quoted=True)]
        return [Text(following or "\\", quoted=True)]

    def _single(self) -> Text:
        start = self.line
        self._take()
        end = self.text.find("'", self.at)
        if end < 0:
            raise self._unended("'", start)
        text = self._take(end - self.at)
        self._take()
        return Text(text, quoted=True)

    def _end(self, wanted: str, start: int) -> None:
        if not self.text.startswith(wanted, self.at):
            raise self._unended(wanted, start)
        self._take(len(wanted))

    def _dollar(self, quoted: bool) -> list[Part]:
        start = self.line
        self._take()
        if self.text.startswith("((", self.at):
            return [self._arithmetic(quoted, start)]
        if self._next() == "(":
            return [self._balanced("(", ")", "command substitution $(…)", quoted)]
        if self._next() == "{":
            return [self._braced(quoted, start)]
        if self._next() == "'" and not quoted:
            self._single()
            return [Opaque("$'…'", quoted=True)]
        if self._next() == '"' and not quoted:
            return []
        match = PARAMETER.match(self.text, self.at)
        if match is None:
            return [Text("$", quoted)]
        return [Parameter(self._take(len(match.group())), quoted)]

    def _arithmetic(self, quoted: bool, start: int) -> Part:
        self._take(2)
        depth, begin = 0, self.at
        while self.at < len(self.text) and not (depth == 0 and self.text.startswith("))", self.at)):
            depth += {"(": 1, ")": -1}.get(self._next(), 0)
            self._take()
        inner = Reader(self.text[begin : self.at], self.name, line=start)
        self._end("))", start)
        return Arithmetic(Word(inner._parts("", quoted=True), start), quoted)

    def _braced(self, quoted: bool, start: int) -> Part:
        begin = self.at
        self._take()
        match = BRACED.match(self.text, self.at)
        name, items = (match.group(1), match.group(3) or "") if match else ("", "")
        self._take(len(match.group()) if match else 0)
        operation = OPERATION.match(self.text, self.at)
        if match and self._next() == "}":
            self._take()
            return Parameter(name, quoted, items=items)
        if match and self.text.startswith(":1}", self.at) and name in "@*":  # all arguments, as $@ itself
            self._take(3)
            return Parameter(name, quoted)
        if match and operation and not items:
            self._take(len(operation.group()))
            operand = Word(self._parts("}", quoted=quoted, nested=True), start)
            self._end("}", start)
            return Parameter(name, quoted, operation.group(), operand)
        self.at, self.line = begin, start
        return self._balanced("{", "}", "", quoted)

    def _balanced(self, opening: str, closing: str, construct: str, quoted: bool) -> Opaque:
        """Up to the bracket that closes the one here; quoted brackets inside do not count."""
        start, begin, depth = self.line, self.at, 0
        while self.at < len(self.text):
            char = self._next()
            if char == "'":
                self._single()
                continue
            self._take(2 if char == "\\" else 1)
            depth += (char == opening) - (char == closing)
            if depth == 0:
                return Opaque(construct or f"${self.text[begin : self.at]}", quoted)
        raise self._unended(opening, start)

    def _backticks(self, quoted: bool) -> Opaque:
        start = self.line
        self._take()
        end = self.text.find("`", self.at)
        if end < 0:
            raise self._unended("`", start)
        self._take(end - self.at + 1)
        return Opaque("command substitution `…`", quoted)

    def _unended(self, what: str, line: int) -> BadInput:
        return BadInput(f"{self.name}:{line}: {what} is opened here and never closed; mend the script")
