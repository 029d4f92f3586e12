"""`gopd eval`, `gopd grade` and `gopd compare`: from the parsed command line to the work."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from gopd import sandbox
from gopd.console import Display
from gopd.errors import BadInput
from gopd.evaluate.compare import compare
from gopd.evaluate.grade import grade_again
from gopd.evaluate.problem import Reading
from gopd.evaluate.run import Options, evaluate
from gopd.evaluate.show import comparison_table
from gopd.evaluate.tasks import tasks_named
from gopd.sections import SamplingSection, View


def evaluate_command(options: argparse.Namespace) -> None:
    """`gopd eval`. Raises BadInput for options that cannot be meant."""
    for name in ("n", "limit", "max_tokens", "slots"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise BadInput(f"--{name.replace('_', '-')} is {value}; at least 1 is needed")
    try:
        sampling = SamplingSection(temperature=options.temperature, top_p=options.top_p, top_k=options.top_k)
    except ValidationError as error:
        problems = "; ".join(f"--{str(e['loc'][0]).replace('_', '-')}: {e['msg']}" for e in error.errors())
        raise BadInput(problems) from error
    settings = Options(
        samples=options.n,
        sampling=sampling,
        max_tokens=options.max_tokens,
        seed=options.seed,
        slots=options.slots,
        engine=options.engine,
        view=View(system=options.system, enable_thinking=options.thinking),
        completion=options.completion,
        reading=_reading(options, options.limit),
        data=_data(options),
        pass_at=_numbers(options.pass_at),
    )
    evaluate(options.models, tasks_named(options.tasks), Path(options.to), settings)


def grade_command(options: argparse.Namespace) -> None:
    """`gopd grade`."""
    grade_again(Path(options.folder), _reading(options, None), _data(options))


def compare_command(options: argparse.Namespace) -> None:
    """`gopd compare`."""
    display = Display()
    found = compare(Path(options.a), Path(options.b))
    if options.json:
        print(json.dumps([asdict(one) | {"verdict": one.verdict} for one in found], indent=1))
        return
    display.console.print(comparison_table(found))
    for one in found:
        for note in one.notes:
            display.say(f"{one.task}: other settings: {note}")


def _reading(options: argparse.Namespace, limit: int | None) -> Reading:
    if options.allow_unsandboxed:
        sandbox.allow_unsandboxed()
    return Reading(options.golds, options.lcb_compat, limit)


def _data(options: argparse.Namespace) -> Path | None:
    return None if options.data is None else Path(options.data)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise BadInput(f"--pass-at {text}: expected whole numbers, as 1,8") from error
