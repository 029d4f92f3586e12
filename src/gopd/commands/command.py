"""What a command of the command line is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

EXITS = "exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted"


@dataclass(frozen=True)
class Command:
    """A name, the words of its help, what declares its arguments, and what runs it and returns the exit code.

    `rest` is an argument that takes a list of words, which may stand before, between and after options. `again` is
    what to do after Ctrl-C.
    """

    name: str
    help: str
    description: str
    examples: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    exits: str = EXITS
    rest: str | None = None
    again: str = "the same command starts again"

    def add(self, parsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Declares it."""
        parser = parsers.add_parser(
            self.name,
            help=self.help,
            description=self.description,
            epilog=f"{self.examples}\n\n{self.exits}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.arguments(parser)
        parser.add_argument("--debug", action="store_true", help="show where in the code an error was raised")
        parser.set_defaults(command=self)


def recipe_arguments(parser: argparse.ArgumentParser, recipe: str) -> None:
    """A recipe and changes to it."""
    parser.add_argument("recipe", metavar="RECIPE", help=recipe)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")


def quiet_libraries() -> None:
    """Keeps Transformers' loading bars and advice off the screen: what the user sees is gopd's own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
