"""`gopd watch`."""

from __future__ import annotations

import argparse
from pathlib import Path

from gopd.commands.command import Command
from gopd.errors import EXIT_DONE, BadInput

EXAMPLES = """examples:
  gopd watch runs/mine
  gopd watch /shared/runs/mine --every 300
  gopd watch runs/mine --every 0

The run may be another machine's, on a disk that both see. Ctrl-C ends the watching, not the run."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder")
    add(
        "--every",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="between refreshes of its report.html, where something is new (30; 0: no report)",
    )


def _run(options: argparse.Namespace) -> int:
    if not options.every >= 0:
        raise BadInput(f"--every {options.every:g}: expected seconds, 0 or more")
    from gopd.console import Display
    from gopd.report.watch import watch

    watch(Path(options.run), Display(), every=options.every)
    return EXIT_DONE


WATCH = Command(
    "watch",
    help="follow a run, and keep its report up to date",
    description="Shows a run's steps and validations as they are finished, until it is finished.",
    examples=EXAMPLES,
    arguments=_arguments,
    run=_run,
    exits="exit codes: 0 the run is finished, 1 the report cannot be written, 2 bad input, 130 interrupted",
    again="the run goes on",
)
