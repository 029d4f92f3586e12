"""`gopd import-verl`: a launch script in, a recipe and an account of every flag out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from gopd.errors import EXIT_DONE, EXIT_RUN_FAILED, BadInput
from gopd.files import atomic_write
from gopd.masking import mask, masked
from gopd.recipe import OpdRecipe, SampledRecipe
from gopd.verl.convert import Converted, convert
from gopd.verl.overrides import read_overrides
from gopd.verl.script import Launch, Script, read_script
from gopd.verl.show import as_json, recipe_yaml, report


def import_verl_command(options: argparse.Namespace) -> int:
    """Writes or prints the recipe. Exit code 1 with `--strict` where a flag could not be mapped. Raises BadInput."""
    target = None if options.to is None else Path(options.to)
    if target is not None and target.exists():
        raise BadInput(f"--to {target}: there is such a file already; name another or remove it")
    script = read_script(options.script, options.passed, os.environ)
    launch = _chosen(script, options)
    done = convert(read_overrides(launch.arguments), launch.where)
    missing = _missing(done)
    text = mask(recipe_yaml(done, script, launch), script.variables)
    account = mask(report(done, script, launch, missing), script.variables)
    if target is not None:
        atomic_write(target, text)
    if options.json:
        written = {"written": None if target is None else str(target), "yaml": text}
        whole = masked(as_json(done, script, launch, missing), script.variables) | written
        print(json.dumps(whole, indent=1, ensure_ascii=False))
    elif target is not None:
        print(account)
        print(f"\nwritten: {target}\nnext: gopd train {target}")
    else:
        print(account, file=sys.stderr)
        print(text, end="")
    return EXIT_RUN_FAILED if options.strict and done.conversion.lost else EXIT_DONE


def _chosen(script: Script, options: argparse.Namespace) -> Launch:
    launches = script.launches
    if options.launch is None and len(launches) == 1:
        return launches[0]
    listed = "; ".join(f"--command {n}: {_title(launch)}" for n, launch in enumerate(launches, 1))
    if options.launch is None:
        raise BadInput(f"{options.script} starts the trainer {len(launches)} times; choose one: {listed}")
    if not 1 <= options.launch <= len(launches):
        raise BadInput(f"--command {options.launch}: there is no such command; {listed}")
    chosen: Launch = launches[options.launch - 1]
    return chosen


def _title(launch: Launch) -> str:
    name = next((a.text.partition("=")[2] for a in launch.arguments if "experiment_name=" in a.text), "")
    return launch.where + (f" ({name})" if name else "")


def _missing(done: Converted) -> list[str]:
    """Files and folders that the recipe names and that are not here."""
    recipe = done.recipe
    named = [("data.files", file) for file in recipe.data.files]
    if recipe.validation is not None:
        named += [("validation.files", file) for file in recipe.validation.files]
    models = [("student.model", recipe.student.model)]
    if isinstance(recipe, OpdRecipe):
        models += [(f"teachers.{name}.model", teacher.model) for name, teacher in recipe.teachers.items()]
    if isinstance(recipe, SampledRecipe) and recipe.reference is not None:
        models.append(("reference.model", recipe.reference.model))
    named += [(key, name) for key, name in models if name.startswith((".", "/", "~"))]
    return [
        f"{key}: {path} is not here; relative paths start where gopd is run"
        for key, path in named
        if not Path(path).expanduser().exists()
    ]
