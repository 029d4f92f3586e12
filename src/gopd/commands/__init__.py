"""The commands of the command line, a module for each: what they are called, what they take, what they start.

Only parsing happens at import; what is heavy is imported when a command runs.
"""

from __future__ import annotations

import argparse

from gopd import __version__
from gopd.commands.command import Command
from gopd.commands.completion import COMPLETION
from gopd.commands.doctor import DOCTOR
from gopd.commands.evaluate import COMPARE, EVAL, GRADE
from gopd.commands.generate import GENERATE
from gopd.commands.import_gguf import IMPORT_GGUF
from gopd.commands.import_verl import IMPORT_VERL
from gopd.commands.merge import MERGE
from gopd.commands.plan import PLAN
from gopd.commands.push import PUSH
from gopd.commands.report import REPORT
from gopd.commands.train import TRAIN
from gopd.commands.watch import WATCH

__all__ = ["COMMANDS", "Command", "whole_parser"]

COMMANDS: tuple[Command, ...] = (
    TRAIN,
    GENERATE,
    MERGE,
    PUSH,
    EVAL,
    GRADE,
    COMPARE,
    PLAN,
    DOCTOR,
    REPORT,
    WATCH,
    IMPORT_GGUF,
    IMPORT_VERL,
    COMPLETION,
)
"""In the order of the help."""


def whole_parser() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser]]:
    """The parser of the whole command line, and what holds those of its commands."""
    parser = argparse.ArgumentParser(
        prog="gopd", description="Generalized on-policy distillation of language models."
    )
    parser.add_argument("--version", action="version", version=f"gopd {__version__}")
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(parsers)
    return parser, parsers
