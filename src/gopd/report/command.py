"""`gopd report`: runs in, one HTML file out."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from gopd.errors import BadInput
from gopd.files import atomic_write
from gopd.report.curves import as_json, groups_of
from gopd.report.rollouts import rollouts_json
from gopd.report.runs import Run, read_runs

NAME = "report.html"


def report_command(paths: Sequence[str], to: str | None, steps: str | None) -> None:
    """Writes the report and says where it is; what is missing or damaged goes to stderr as well. Raises BadInput."""
    folders = [Path(path) for path in paths]
    place = Path(to) if to is not None else (folders[0] if len(folders) == 1 else Path()) / NAME
    if place.is_dir():
        raise BadInput(f"--to {place}: is a folder; name a file, as in {place / NAME}")
    runs = write_report(folders, place, None if steps is None else parse_steps(steps))
    for run in runs:
        for problem in run.problems:
            print(f"warning: {run.path}: {problem}", file=sys.stderr)
    print(f"report: {place} ({place.stat().st_size / 1e6:.1f} MB)")


def write_report(folders: Sequence[Path], place: Path, steps: Sequence[range] | None = None) -> list[Run]:
    """Writes the report of some run folders to a file; returns the runs with what is wrong with them.

    `steps` restricts the rollouts of the token inspector. Raises BadInput for folders that are no runs, and when the
    plotting library is not installed.
    """
    check_plotting()
    from gopd.report.page import page

    runs = read_runs(folders)
    groups = groups_of(runs)
    rollouts = rollouts_json(groups, steps)
    atomic_write(place, page(groups, as_json(groups), rollouts))
    return runs


def check_plotting() -> None:
    """BadInput when the plotting library is not installed."""
    if importlib.util.find_spec("vl_convert") is None:
        raise BadInput(
            "vl-convert-python is not installed, which draws the curves; `pip install gopd[report]`"
        )


def parse_steps(text: str) -> list[range]:
    """Steps as in `1,5,20-25`. Raises BadInput."""
    steps = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise BadInput(f"--steps {text}: expected steps and spans of steps, as in 1,5,20-25")
        steps.append(range(int(first), int(last if dash else first) + 1))
    return steps
