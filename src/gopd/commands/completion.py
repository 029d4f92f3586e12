"""`gopd completion`."""

from __future__ import annotations

import argparse

from gopd.commands.command import Command
from gopd.errors import EXIT_DONE

EXAMPLES = """examples:
  gopd completion bash > ~/.local/share/bash-completion/completions/gopd
  gopd completion zsh > ~/.zfunc/_gopd          # with ~/.zfunc in fpath"""

FILES, FOLDERS = (
    ("RECIPE", "SCRIPT.sh", "FILE.gguf", "FILE", "RECIPE.yaml"),
    ("RUN", "FOLDER", "MODEL", "A", "B"),
)
"""Arguments, by their names in the help, that are completed by files, and by folders."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"))


def _run(options: argparse.Namespace) -> int:
    import shtab

    from gopd.commands import whole_parser

    parser, commands = whole_parser()
    for action in (action for command in commands.choices.values() for action in command._actions):
        if action.metavar in FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        if action.metavar in FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
    return EXIT_DONE


COMPLETION = Command(
    "completion",
    help="print a script that completes commands and options in a shell",
    description="Prints a completion script for bash, zsh, fish or tcsh.",
    examples=EXAMPLES,
    arguments=_arguments,
    run=_run,
)
