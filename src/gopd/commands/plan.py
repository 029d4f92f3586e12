"""`gopd plan`."""

from __future__ import annotations

import argparse

from gopd.commands.command import Command, quiet_libraries, recipe_arguments

EXAMPLES = """examples:
  gopd plan recipes/paper/multi-teacher.yaml --gpus 8 --gpu h100-80gb
  gopd plan mine.yaml cluster.learner_ranks=16 --gpus 32 --gpu a100-80gb --mean-response-tokens 2500
  gopd plan mine.yaml --gpus 8 --gpu h200 --like math=Qwen/Qwen3-4B --json
  gopd plan recipes/quickstart.yaml --device cpu

What is counted, and how well: docs/plan.md"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    recipe_arguments(parser, "YAML file; its cluster section is judged if it has one")
    add = parser.add_argument
    add("--gpus", type=int, metavar="N", help="devices of the cluster")
    add("--gpu", metavar="NAME", help="their kind, e.g. h100-80gb")
    add("--device", choices=("cpu",), help="instead: gopd train on this machine, whose rates are measured")
    add("--mean-prompt-tokens", type=int, metavar="N", help="expected (an eighth of the recipe's limit)")
    add("--mean-response-tokens", type=int, metavar="N", help="expected (a quarter of the recipe's limit)")
    add("--spread", type=float, default=1.0, help="deviation of the logarithm of response lengths (1)")
    add("--update-share", type=float, help="of the device's products, in update and scoring (GPUs 0.4)")
    add("--decode-share", type=float, help="of the device's memory bandwidth, in decoding (0.6)")
    add(
        "--like",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="a role's model has the sizes of this one",
    )
    add("--json", action="store_true", help="everything as JSON")


def _run(options: argparse.Namespace) -> int:
    from gopd.plan.command import plan_command

    quiet_libraries()
    return plan_command(options)


PLAN = Command(
    "plan",
    help="predict a recipe's memory and time on a cluster",
    description="Says what fits, what binds, and proposes the cluster section. Loads no weights.",
    examples=EXAMPLES,
    arguments=_arguments,
    run=_run,
    exits="exit codes: 0 it fits, 1 it does not, 2 bad input",
    rest="overrides",
)
