"""`gopd generate`."""

from __future__ import annotations

import argparse

from gopd.commands.command import Command, quiet_libraries, recipe_arguments
from gopd.errors import EXIT_DONE

EXAMPLES = """examples:
  gopd generate recipes/quickstart.yaml --to runs/teachers
  gopd generate recipes/quickstart.yaml --to runs/teachers --samples 4 --keep-correct --resume

The file responses.parquet in the folder can be the data of a recipe of method sft."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser, "YAML file of method opd")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="folder for the responses")
    parser.add_argument("--samples", type=int, default=1, help="responses to each prompt (1)")
    parser.add_argument("--keep-correct", action="store_true", help="keep only what the verifiers accept")
    parser.add_argument("--resume", action="store_true", help="go on with what is in the folder")


def _run(options: argparse.Namespace) -> int:
    from gopd.recipe_file import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    from gopd.generate import generate

    quiet_libraries()
    settings = {"samples": options.samples, "keep_correct": options.keep_correct}
    generate(recipe, options.to, **settings, resume=options.resume)
    return EXIT_DONE


GENERATE = Command(
    "generate",
    help="let a recipe's teachers answer its prompts, as data for method sft",
    description="Every prompt of the recipe's data is answered by its own teacher, into a Parquet file.",
    examples=EXAMPLES,
    arguments=_arguments,
    run=_run,
    rest="overrides",
    again="with --resume it goes on with what is in the folder",
)
