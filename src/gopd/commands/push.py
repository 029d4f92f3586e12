"""`gopd push`."""

from __future__ import annotations

import argparse

from gopd.commands.command import Command
from gopd.errors import EXIT_DONE

EXAMPLES = """examples:
  gopd push runs/mine my-name/my-student --private
  gopd push merged my-name/merged --revision alpha-0.5"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="FOLDER", help="a run folder, whose student is meant, or a model folder"
    )
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="the repository, made if need be")
    parser.add_argument("--private", action="store_true", help="if it is made now, only its owner sees it")
    parser.add_argument("--revision", metavar="BRANCH", help="a branch, made if need be; default main")
    parser.add_argument("--message", default="Upload by gopd", help="of the commit")


def _run(options: argparse.Namespace) -> int:
    from gopd.publish import push_to_hub

    print(
        push_to_hub(
            options.folder,
            options.repo_id,
            private=options.private,
            revision=options.revision,
            message=options.message,
        )
    )
    return EXIT_DONE


PUSH = Command(
    "push",
    help="upload a student or another model to the Hugging Face Hub",
    description="Uploads a run's student with its model card, or any model folder, and prints the commit's URL.",
    examples=EXAMPLES,
    arguments=_arguments,
    run=_run,
)
