"""`gopd import-verl`."""

from __future__ import annotations

import argparse

from gopd.commands.command import Command

EXAMPLES = """examples:
  gopd import-verl run_qwen3-4b-g-opd.sh --to mine.yaml --command 2
  gopd import-verl run.sh --to mine.yaml trainer.nnodes=2       # what would stand for "$@"
  MODEL=Qwen/Qwen3-4B gopd import-verl run.sh --strict --json

Every flag: docs/import-verl.md"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("script", metavar="SCRIPT.sh", help="shell script that starts verl.trainer.main_ppo")
    add("passed", nargs="*", metavar="ARGUMENT", help='what stands for "$@" in the script')
    add("--to", metavar="RECIPE.yaml", help="new file for the recipe (printed otherwise)")
    add(
        "--command",
        dest="launch",
        type=int,
        metavar="N",
        help="which of the script's launches, where there are several",
    )
    add("--strict", action="store_true", help="exit code 1 where a flag could not be mapped")
    add("--json", action="store_true", help="recipe and account as JSON")


def _run(options: argparse.Namespace) -> int:
    from gopd.verl.command import import_verl_command

    return import_verl_command(options)


IMPORT_VERL = Command(
    "import-verl",
    help="turn a launch script of verl or of the published G-OPD code into a recipe",
    description="Reads the script without running it, and says what became of every flag.",
    examples=EXAMPLES,
    arguments=_arguments,
    run=_run,
    exits="exit codes: 0 done, 1 with --strict: a flag could not be mapped, 2 bad input",
    rest="passed",
)
