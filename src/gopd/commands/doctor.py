"""`gopd doctor`."""

from __future__ import annotations

import argparse

from gopd.commands.command import Command, quiet_libraries, recipe_arguments

EXAMPLES = """examples:
  gopd doctor recipes/quickstart.yaml
  gopd doctor mine.yaml data.max_response_tokens=4096 --rows 64 --problems 128
  gopd doctor mine.yaml --problems 0 --json

What each check means: docs/doctor.md"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser, "YAML file")
    add = parser.add_argument
    add("--rows", type=int, default=32, metavar="N", help="rows of the training data to look at (32)")
    add("--problems", type=int, default=64, metavar="N", help="validation problems of each domain (64)")
    add("--json", action="store_true", help="everything as JSON")


def _run(options: argparse.Namespace) -> int:
    from gopd.doctor.command import doctor_command

    quiet_libraries()
    return doctor_command(options)


DOCTOR = Command(
    "doctor",
    help="find a recipe's mistakes in minutes, before they cost days",
    description="Samples and scores a few rows as training would, and says what is fine, doubtful or a stop, each "
    "with its mend. Writes nothing.",
    examples=EXAMPLES,
    arguments=_arguments,
    run=_run,
    exits="exit codes: 0 fine or warnings only, 1 a stop, 2 bad input",
    rest="overrides",
)
