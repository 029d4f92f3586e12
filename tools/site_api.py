"""Writes docs/api.md from signatures and docstrings: `python tools/site_api.py`. A test says when it is old."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import gopd
from gopd import objective, sandbox
from gopd.report.command import write_report
from gopd.rows import resolve
from gopd.tracking import read_metrics
from gopd.verify import code, math

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
HEAD = """# API

What programs call, from the docstrings (`python tools/site_api.py` writes this page). The command line does no more.
"""


def entry(name: str, thing: object) -> str:
    """A heading, the signature, the docstring as it is."""
    assert callable(thing)
    words = re.sub(r"(: |-> )'([^']*)'", r"\1\2", f"{name}{inspect.signature(thing)}")
    return f"## {name}\n\n```python\n{spread(words)}\n```\n\n{inspect.getdoc(thing)}\n"


def spread(words: str) -> str:
    """One argument a line where a signature is long."""
    if len(words) <= 100:
        return words
    inside, _, after = words.partition("(")[2].rpartition(")")
    arguments = re.split(r", (?=\*|\w+: )", inside)
    return words.partition("(")[0] + "(\n" + "".join(f"    {one},\n" for one in arguments) + ")" + after


def page() -> str:
    """The whole page."""
    things = {
        "gopd.load_recipe": gopd.load_recipe,
        "gopd.train": gopd.train,
        "gopd.push_to_hub": gopd.push_to_hub,
    }
    things |= {"gopd.report.command.write_report": write_report, "gopd.tracking.read_metrics": read_metrics}
    things |= {"gopd.rows.resolve": resolve}
    things |= {
        f"gopd.objective.{name}": thing
        for name, thing in vars(objective).items()
        if inspect.isfunction(thing) and thing.__module__ == objective.__name__ and not name.startswith("_")
    }
    things |= {"gopd.verify.math.grade": math.grade, "gopd.verify.code.grade": code.grade}
    things |= {"gopd.sandbox.run": sandbox.run}
    return "\n".join([HEAD, *(entry(name, thing) for name, thing in things.items())])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
