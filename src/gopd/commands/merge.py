"""`gopd merge`."""

from __future__ import annotations

import argparse

from gopd.commands.command import Command, quiet_libraries
from gopd.errors import EXIT_DONE

EXAMPLES = """examples:
  gopd merge math-expert code-expert --to average
  gopd merge math-expert code-expert --base qwen3-4b --alpha 0.5 --to extrapolated"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folders, Hub names or builtin:NAME")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="new folder for the merged model")
    parser.add_argument("--base", metavar="MODEL", help="what the models were trained from")
    parser.add_argument(
        "--alpha", type=float, default=0.0, help="how far beyond the average, from the base; 0.5 is half"
    )


def _run(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from gopd.merge import merge

    quiet_libraries()
    with Progress(transient=True) as bars:
        task = bars.add_task("merging", total=None)
        merge(
            options.models,
            options.to,
            base=options.base,
            alpha=options.alpha,
            progress=lambda done, total: bars.update(task, completed=done, total=total),
        )
    print(f"merged into {options.to}")
    return EXIT_DONE


MERGE = Command(
    "merge",
    help="average checkpoints, or extrapolate beyond them (ExPO)",
    description="Writes θ + α(θ − θ_base), where θ is the average of the models; without a base the average.",
    examples=EXAMPLES,
    arguments=_arguments,
    run=_run,
)
