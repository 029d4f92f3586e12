"""`gopd train`."""

from __future__ import annotations

import argparse

from gopd.commands.command import Command, quiet_libraries, recipe_arguments
from gopd.errors import EXIT_DONE
from gopd.supervise import supervise, supervised

EXAMPLES = """examples:
  gopd train recipes/quickstart.yaml
  gopd train recipes/quickstart.yaml objective.reward_scale=1.0 tracking.name=opd
  gopd train recipes/quickstart.yaml --resume
  gopd train recipes/quickstart.yaml --json | jq 'select(.event == "step") | .kl_to_target'"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser, "YAML file; docs/recipe.md explains every key")
    parser.add_argument("--resume", action="store_true", help="go on from the run folder's last checkpoint")
    parser.add_argument(
        "--cluster",
        metavar="local|auto|ADDRESS",
        help="run on Ray: on this machine, on the cluster this runs in, or on the one at an address",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="steps, validations and the run folder as JSON lines on standard output; all else goes to standard error",
    )


def _run(options: argparse.Namespace) -> int:
    from gopd.recipe_file import load_recipe

    recipe = load_recipe(options.recipe, options.overrides)
    if options.cluster is not None and not supervised():
        return supervise(options.words, recipe.cluster.max_restarts)
    from gopd.console import JsonDisplay
    from gopd.loop import train

    quiet_libraries()
    display = JsonDisplay() if options.json else None
    folder = train(recipe, resume=options.resume, cluster=options.cluster, display=display)
    if display is not None:
        display.finished(folder)
    return EXIT_DONE


TRAIN = Command(
    "train",
    help="train a student by a recipe",
    description="Trains a student by a recipe (method opd, grpo or sft).",
    examples=EXAMPLES,
    arguments=_arguments,
    run=_run,
    rest="overrides",
    again="a run goes on from its last checkpoint with --resume",
)
