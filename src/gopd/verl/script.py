"""The commands of a launch script that start verl's trainer, with their arguments as bash would pass them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gopd.errors import BadInput
from gopd.verl.commands import Command, commands
from gopd.verl.expand import Unknown, Value, Variables, expand, expand_text
from gopd.verl.syntax import Reader
from gopd.verl.words import Parameter, Text, Word

DECLARATIONS = ("export", "declare", "typeset", "local", "readonly")
MODULE = re.compile(r"(verl|recipe)(\.\w+)+")
PROGRAM = re.compile(r"(.*/)?main_ppo\.py")
TRAINER = "verl.trainer.main_ppo"
LONE_OVERRIDE = re.compile(r"[+~]{0,2}[A-Za-z_]\w*([./@]\w+)+=")
"""What can only be an override of Hydra, never an assignment."""

BEHIND_BACKSLASH = (
    "a blank or a comment behind the backslash: bash would take it for arguments and end the command here; read as if "
    "the command went on, as it was meant"
)


@dataclass(frozen=True)
class Argument:
    """One word as the trainer gets it, and where it comes from."""

    text: str
    where: str


@dataclass(frozen=True)
class Launch:
    """One command that starts the trainer."""

    where: str
    arguments: tuple[Argument, ...]


@dataclass
class Script:
    """What was read: the launches, and what the reader should know about the reading."""

    launches: list[Launch] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    environment: list[str] = field(default_factory=list)
    """Variables whose values came from the environment."""
    variables: dict[str, str] = field(default_factory=dict)
    """Variables that the script sets, over those of the environment: what is shown is masked by them."""


def read_script(path: str | Path, arguments: Sequence[str], environment: Mapping[str, str]) -> Script:
    """Reads a launch script without running it. Raises BadInput where it is none, or where it hangs on what only
    running it would tell."""
    name = str(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot read script {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(
            f"script {name}: expected a shell script in UTF-8, found other bytes: {error}"
        ) from error
    script = Script()
    if "\r\n" in text:
        script.warnings.append(
            f"{name}: lines end as on Windows, on which bash stumbles; read as if they did not"
        )
    reader = _Reading(name, script, Variables(environment, list(arguments), name))
    source = Reader(text.replace("\r\n", "\n"), name)
    try:
        for command in commands(source.tokens(), name):
            reader.take(command)
    except RecursionError as error:
        raise BadInput(
            f"{name}: constructs within constructs, too deep to be meant; mend the script"
        ) from error
    if source.broken:
        script.warnings.append(f"{name}:{', '.join(map(str, source.broken))}: {BEHIND_BACKSLASH}")
    if not script.launches:
        others = "".join(f" ({warning.partition(': ')[2]})" for warning in script.warnings)
        raise BadInput(
            f"{name}: no command here starts {TRAINER}, so this is no launch script of verl; "
            f"expected a line such as `python3 -m {TRAINER} key=value …`{others}"
        )
    script.environment = list(reader.variables.used)
    own = {name: value for name, value in reader.variables.own.items() if isinstance(value, str)}
    script.variables = {**environment, **own}
    return script


class _Reading:
    """Goes through the commands in order, and keeps what they set."""

    def __init__(self, name: str, script: Script, variables: Variables) -> None:
        self.name, self.script, self.variables = name, script, variables
        self.open: list[Argument] | None = None
        """Arguments of the launch just before, to which a stray override belongs."""
        self.ended = 0

    def take(self, command: Command) -> None:
        """One command."""
        words = command.words
        leading = next((number for number, word in enumerate(words) if not word.assigns), len(words))
        first = words[leading].plain if leading < len(words) else None
        if leading == len(words):
            for word in words:
                self._assign(word, command)
        elif first in DECLARATIONS:
            for word in words[1:]:
                if word.assigns:
                    self._assign(word, command)
        elif first in ("for", "select", "read"):
            for word in words[1 : 2 if first != "read" else None]:
                self._forget(word.plain or "", f"`{first}` on line {word.line} sets it")
        elif first == "unset":
            for word in words[1:]:
                self.variables.own.pop(word.plain or "", None)
        elif first == "shift" or (first == "set" and any(word.plain == "--" for word in words)):
            self._shift(words, command)
        elif first in ("source", ".", "eval"):
            self.script.warnings.append(
                f"{self.name}:{command.line}: `{first}` is not followed; what it sets is not known here"
            )
        elif self._stray(words, command) or self._launch(words[leading:], command):
            return
        self.open = None

    def _assign(self, word: Word, command: Command) -> None:
        match = word.assigns
        assert match is not None
        name, sign = match.groups()
        if command.inside or command.after in ("&&", "||"):
            cause = command.inside or f"the `{command.after}` before it"
            self._forget(name, f"line {word.line} sets it, and whether it does hangs on {cause}")
            return
        try:
            self.variables.own[name] = self._value(word, match.end(), name if sign == "+=" else None)
        except Unknown as reason:
            self.variables.own[name] = Unknown(f"${name}, set on line {word.line} from {reason}")

    def _value(self, word: Word, start: int, onto: str | None) -> Value:
        before = None if onto is None else self.variables.value(onto)
        if word.array is not None:
            items = [text for item in word.array for text in expand(item, self.variables)]
            return (before if isinstance(before, list) else [before] if before else []) + items
        first = word.parts[0]
        assert isinstance(first, Text)
        rest = [Text(first.value[start:], quoted=False), *word.parts[1:]]
        text = expand_text(rest if first.value[start:] else rest[1:], self.variables)
        if isinstance(before, list):
            return [before[0] + text, *before[1:]] if before else [text]
        return (before or "") + text

    def _forget(self, name: str, why: str) -> None:
        self.variables.own[name] = Unknown(f"${name}: {why}; set it to its value on a line of its own")

    def _shift(self, words: list[Word], command: Command) -> None:
        """`shift` and `set --`."""
        count = words[1].plain if len(words) > 1 else "1"
        if words[0].plain == "set" or command.inside or count is None or not count.isdigit():
            self.variables.shuffled = Unknown(
                f"$@, which `{words[0].plain}` on line {command.line} changes; write the arguments into the command"
            )
        else:
            del self.variables.arguments[: int(count)]

    def _stray(self, words: list[Word], command: Command) -> bool:
        """Adds a command that can only be overrides to the launch before it: its line was cut off there."""
        if self.open is None or command.after != "\n" or command.inside:
            return False
        first = words[0].parts[0] if words[0].parts else None
        arguments = isinstance(first, Parameter) and first.name in "@*"
        if not arguments and not (isinstance(first, Text) and LONE_OVERRIDE.match(first.value)):
            return False
        self.script.warnings.append(
            f"{self.name}:{words[0].line}: bash ends the command before this line (line {self.ended} has no backslash, "
            "or a comment or an empty line comes after it) and would take the rest for another one; read as if the "
            "command went on"
        )
        self._extend(words)
        return True

    def _launch(self, words: list[Word], command: Command) -> bool:
        """Notes a command that starts the trainer."""
        fields = [field for word in words for field in self._fields(word)]
        start = None if words[0].plain in ("echo", "printf") else _program_at(fields)
        if start is None:
            return False
        program = fields[start]
        assert isinstance(program, Argument)
        if program.text != TRAINER and not PROGRAM.fullmatch(program.text):
            self.script.warnings.append(
                f"{program.where}: {program.text} is left aside; only {TRAINER} has a recipe"
            )
            return False
        if command.inside:
            raise BadInput(
                f"{self.name}:{command.line}: the launch stands in {command.inside}, which is not evaluated; copy the "
                "command, and what its variables need, to the top level of a script"
            )
        self.open = []
        self.script.launches.append(Launch(f"{self.name}:{command.line}", ()))
        self._append(fields[start + 1 :], words[-1].line)
        return True

    def _extend(self, words: list[Word]) -> None:
        self._append([part for word in words for part in self._fields(word)], words[-1].line)

    def _append(self, fields: list[Argument | Unknown], line: int) -> None:
        assert self.open is not None
        for argument in fields:
            if isinstance(argument, Unknown):
                raise BadInput(str(argument))
            self.open.append(argument)
        self.ended = line
        launch = self.script.launches[-1]
        self.script.launches[-1] = Launch(launch.where, tuple(self.open))

    def _fields(self, word: Word) -> list[Argument | Unknown]:
        where = f"{self.name}:{word.line}"
        try:
            texts = expand(word, self.variables)
        except Unknown as reason:
            return [Unknown(f"{where}: the command needs {reason}")]
        first = word.parts[0] if word.parts else None
        if not texts and isinstance(first, Parameter) and first.name not in "@*" and not first.operation:
            self.script.warnings.append(f"{where}: ${first.name} is empty or not set, and the word vanishes")
        return [Argument(text, where) for text in texts]


def _program_at(fields: Sequence[Argument | Unknown]) -> int | None:
    """Where the words of a command name the program that is started, if it is one of verl's."""
    for number, word in enumerate(fields):
        if not isinstance(word, Argument):
            continue
        before = fields[number - 1] if number else None
        module = isinstance(before, Argument) and before.text == "-m" and MODULE.fullmatch(word.text)
        if module or (number and PROGRAM.fullmatch(word.text)):
            return number
    return None
