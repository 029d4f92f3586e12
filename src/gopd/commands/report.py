"""`gopd report`."""

from __future__ import annotations

import argparse

from gopd.commands.command import Command
from gopd.errors import EXIT_DONE

EXAMPLES = """examples:
  gopd report runs/mine
  gopd report runs/exopd-seed0 runs/exopd-seed1 runs/opd-seed0 --to exopd-against-opd.html
  gopd report runs/mine --steps 1,40-45

The file opens in a browser from the disk, without a network: docs/report.md"""


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run folders, finished or not")
    add("--to", metavar="FILE", help="the file (report.html: of one run in its folder, of several here)")
    add("--steps", metavar="N,N-N", help="only rollouts of these steps, where all are too many for a page")


def _run(options: argparse.Namespace) -> int:
    from gopd.report.command import report_command

    report_command(options.runs, options.to, options.steps)
    return EXIT_DONE


REPORT = Command(
    "report",
    help="show runs in one HTML file",
    description="Curves of all runs, their recipes and validations, and every token of logged rollouts.",
    examples=EXAMPLES,
    arguments=_arguments,
    run=_run,
)
