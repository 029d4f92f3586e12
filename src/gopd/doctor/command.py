"""`gopd doctor`: a recipe's mistakes, before it runs."""

from __future__ import annotations

import argparse
import json
import sys

from rich.console import Console

from gopd.console import PLAIN_WIDTH, Display
from gopd.doctor.checks import CHECKS
from gopd.doctor.evidence import Request
from gopd.doctor.finding import Finding
from gopd.doctor.gather import STAGES, gather, prepared
from gopd.doctor.resources import devices_here, weights_too_large
from gopd.doctor.show import Diagnosis, as_json, show
from gopd.errors import EXIT_DONE, EXIT_RUN_FAILED, BadInput
from gopd.recipe_file import load_recipe


def doctor_command(options: argparse.Namespace) -> int:
    """Prints the diagnosis; exit code 0 without a stop, 1 with one. Raises BadInput for what is no recipe."""
    if options.rows < 1:
        raise BadInput(f"--rows {options.rows}: at least 1")
    if options.problems < 0:
        raise BadInput(f"--problems {options.problems}: at least 0")
    recipe = load_recipe(options.recipe, options.overrides)
    request = Request(recipe, options.recipe, options.overrides, options.rows, options.problems)
    screen = Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)
    progress = Console(stderr=True) if options.json else screen
    diagnosis = examine(request, Display(progress))
    if options.json:
        print(json.dumps(as_json(diagnosis), indent=1, ensure_ascii=False))
    else:
        show(screen, diagnosis)
    return EXIT_RUN_FAILED if diagnosis.verdict == "stop" else EXIT_DONE


def examine(request: Request, display: Display) -> Diagnosis:
    """Every check of a recipe; where it cannot even start, that one finding. Writes nothing."""
    title = f"gopd doctor {request.path}"
    try:
        task, said = prepared(request.recipe)
        devices = devices_here(request.recipe)
        if too_large := weights_too_large(request.recipe, devices[0]):
            return Diagnosis(title, [too_large])
        with display.run(STAGES, 0, "examining"):
            evidence = gather(request, task, said, devices, display)
    except BadInput as error:
        return Diagnosis(title, [Finding("can start", "stop", str(error))])
    rows, responses = len(evidence.prompts), len(evidence.rollouts)
    title += f": {rows} rows of the data, {responses} responses"
    return Diagnosis(title, [check(evidence) for check in CHECKS], evidence.seen, task.tokenizer)
