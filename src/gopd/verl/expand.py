"""What bash makes of a word: parameters, arithmetic and field splitting, from the values that are known."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from gopd.errors import BadInput
from gopd.verl.words import Arithmetic, Opaque, Parameter, Part, Text, Word

BLANKS = " \t\n"
BRACES = re.compile(r"\{[^{}]*(,|\.\.)[^{}]*\}")


class Unknown(Exception):
    """A value that reading the script does not give. The message says what it hangs on, and how to mend it."""


Value = str | list[str] | Unknown
"""Of a variable: text, an array, or why it is not known."""


@dataclass
class Variables:
    """What the script has set so far, over what its surroundings give."""

    environment: Mapping[str, str]
    arguments: list[str]
    """What stands for `$@`."""
    script: str
    own: dict[str, Value] = field(default_factory=dict)
    used: dict[str, None] = field(default_factory=dict)
    """Names that were looked up in the environment and found."""
    room: int = 4_000_000
    """Characters that values may still have in all: `x=$x$x` on every line doubles them."""
    shuffled: Unknown | None = None
    """Why the arguments are not known any more."""

    def value(self, name: str) -> str | list[str] | None:
        """A parameter's value; None where it is unset. Raises Unknown, and BadInput where there is no room."""
        found = self._found(name)
        self.take(1 + (len(found) if isinstance(found, str) else sum(20 + len(item) for item in found or [])))
        return found

    def take(self, size: int) -> None:
        """Raises BadInput where the script's values become longer than any launch needs."""
        self.room -= size
        if self.room < 0:
            raise BadInput(f"{self.script}: its variables grow without end; write their values out")

    def _found(self, name: str) -> str | list[str] | None:
        if name in ("@", "*", "#") or name.isdigit():
            return self._positional(name)
        if name in ("?", "$", "!", "-"):
            raise Unknown(f"${name}, which only a running shell has; write the value in its place")
        if name in self.own:
            value = self.own[name]
            if isinstance(value, Unknown):
                raise value
            return value
        if name in self.environment:
            self.used[name] = None
        return self.environment.get(name)

    def _positional(self, name: str) -> str | list[str] | None:
        if name == "0":
            return self.script
        if self.shuffled is not None:
            raise self.shuffled
        if name == "#":
            return str(len(self.arguments))
        if name in "@*":
            return list(self.arguments)
        return self.arguments[int(name) - 1] if int(name) <= len(self.arguments) else None


@dataclass
class _Fields:
    """Words in the making."""

    done: list[str] = field(default_factory=list)
    current: str | None = None

    def add(self, text: str) -> None:
        self.current = (self.current or "") + text

    def split(self, text: str) -> None:
        """Adds the value of an unquoted expansion, which blanks cut into fields."""
        pieces = text.split()
        if text[:1] in BLANKS and text:
            self.cut()
        for number, piece in enumerate(pieces):
            if number:
                self.cut()
            self.add(piece)
        if text[-1:] in BLANKS and pieces:
            self.cut()

    def cut(self) -> None:
        if self.current is not None:
            self.done.append(self.current)
        self.current = None

    def end(self) -> list[str]:
        self.cut()
        return self.done


def expand(word: Word, variables: Variables) -> list[str]:
    """The fields that a word becomes. Raises Unknown for a value that is not known, and for a variable that is unset.

    A word that is nothing but an unset variable without quotes vanishes, as in bash. File name patterns are left as
    they are, which is what bash does where no file matches.
    """
    alone = word.parts[0] if len(word.parts) == 1 else None
    bare = isinstance(alone, Parameter) and not (alone.operation or alone.quoted or alone.items)
    if isinstance(alone, Parameter) and bare and variables.value(alone.name) is None:
        return []
    literal = "".join(p.value if isinstance(p, Text) and not p.quoted else "\0" for p in word.parts)
    if BRACES.search(literal):
        raise Unknown("brace expansion {…}, which is not evaluated; write its words out, or quote it")
    fields = _Fields()
    parts = word.parts
    if sign := word.assigns:  # `name=~/x` is a folder of HOME also where it assigns nothing
        first = parts[0]
        assert isinstance(first, Text)
        fields.add(sign.group())
        parts = (Text(first.value[sign.end() :], quoted=False), *parts[1:])
    for part in _home(parts, variables):
        _add(part, fields, variables)
    return fields.end()


def expand_text(parts: Sequence[Part], variables: Variables) -> str:
    """The one text that a value in an assignment becomes: no splitting there."""
    return "".join(_joined(part, variables) for part in _home(parts, variables))


def _home(parts: Sequence[Part], variables: Variables) -> Sequence[Part]:
    first = parts[0] if parts else None
    if isinstance(first, Text) and not first.quoted and (first.value == "~" or first.value.startswith("~/")):
        home = variables.value("HOME")
        if not isinstance(home, str):
            raise Unknown("~, and HOME is not set; write the folder in its place")
        return [Text(home, quoted=True), Text(first.value[1:], quoted=False), *parts[1:]]
    return parts


def _add(part: Part, fields: _Fields, variables: Variables) -> None:
    if isinstance(part, Text):
        fields.add(part.value)
        return
    if isinstance(part, Parameter) and part.operand is not None and not part.quoted:
        for inner in _chosen(part, variables):
            if isinstance(inner, Text) and not inner.quoted:
                fields.split(inner.value)
            else:
                _add(inner, fields, variables)
        return
    value = _value(part, variables)
    if isinstance(value, str):
        if part.quoted:
            fields.add(value)
        else:
            fields.split(value)
        return
    if part.quoted and isinstance(part, Parameter) and "*" in (part.name, part.items):
        fields.add(" ".join(value))
        return
    for number, item in enumerate(value):
        if number:
            fields.cut()
        if part.quoted:
            fields.add(item)
        else:
            fields.split(item)


def _joined(part: Part, variables: Variables) -> str:
    if isinstance(part, Text):
        return part.value
    if isinstance(part, Parameter) and part.operand is not None:
        return "".join(_joined(inner, variables) for inner in _chosen(part, variables))
    value = _value(part, variables)
    return value if isinstance(value, str) else " ".join(value)


def _value(part: Part, variables: Variables) -> str | list[str]:
    """Of a part that is no text and chooses nothing."""
    if isinstance(part, Opaque):
        raise Unknown(
            f"{part.construct}, which is not evaluated; write its value in its place (or, for a variable, "
            "NAME=value in front of it)"
        )
    if isinstance(part, Arithmetic):
        return str(evaluate(expand_text(part.expression.parts, variables), variables))
    assert isinstance(part, Parameter)
    if part.operand is not None:
        return "".join(_joined(inner, variables) for inner in _chosen(part, variables))
    value = variables.value(part.name)
    if value is None:
        raise Unknown(
            f"${part.name}, which is set neither in the script nor in the environment; set it: "
            f"{part.name}=… gopd import-verl …"
        )
    if isinstance(value, list) and part.name not in "@*" and not part.items:
        return value[0] if value else ""
    return value


def _chosen(part: Parameter, variables: Variables) -> Sequence[Part]:
    """The parts that `${name:-word}` and its like stand for."""
    assert part.operand is not None
    value = variables.value(part.name)
    text = " ".join(value) if isinstance(value, list) else value
    there = bool(text) if part.operation.startswith(":") else text is not None
    kind = part.operation[-1]
    if kind == "+":
        return part.operand.parts if there else ()
    if there:
        return (Text(text or "", part.quoted),)
    if kind == "?":
        raise Unknown(f"${part.name}, which the script demands; set it: {part.name}=… gopd import-verl …")
    if kind == "=":
        variables.own[part.name] = expand_text(part.operand.parts, variables)
    return part.operand.parts


_BINARY: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1),
    ast.Mod: lambda a, b: abs(a) % abs(b) * (-1 if a < 0 else 1),
    ast.Pow: operator.pow,
}


def evaluate(expression: str, variables: Variables) -> int:
    """An integer expression of bash: + - * / % ** and brackets, names with or without `$`. Raises Unknown."""
    variables.take(100)
    try:
        return _number(ast.parse(expression.strip(), mode="eval").body, variables)
    except BadInput:
        raise
    except (SyntaxError, ZeroDivisionError, ValueError, RecursionError, MemoryError) as error:
        raise Unknown(
            f"$(({expression})), which is more than + - * / % ** of whole numbers; write its value in its place"
        ) from error


def _number(node: ast.expr, variables: Variables) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        value = variables.value(node.id)
        return evaluate(value, variables) if isinstance(value, str) and value else 0
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _number(node.operand, variables)
        return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _number(node.left, variables), _number(node.right, variables)
        if isinstance(node.op, ast.Pow) and not 0 <= right <= 64:
            raise ValueError(right)
        found = _BINARY[type(node.op)](left, right)
        if abs(found) >= 2**63:  # bash would begin anew from below
            raise ValueError(found)
        return found
    raise ValueError(ast.dump(node))
