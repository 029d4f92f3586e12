"""From `gopd train` on the command line to the first sampled token."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import models

PROGRAM = """
import os, sys, time
from gopd.recipe_file import load_recipe
recipe = load_recipe(sys.argv[1], sys.argv[2:])
from gopd.console import Display, Phase
from gopd.loop import train
class First(Phase):
    def sampled(self, done, total, tokens):
        print(time.time(), flush=True)
        os._exit(0)
import gopd.console
gopd.console.Phase = First
train(recipe)
"""


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    recipe = models.ROOT / "recipes" / "quickstart.yaml"
    folder = models.ROOT / "runs" / "benchmarks" / "startup"
    seconds = []
    for number in range(3 if quick else 6):
        overrides = [
            "validation=null",
            f"tracking.folder={folder}",
            f"tracking.name=run-{time.time_ns()}",
        ]
        start = time.time()
        command = [sys.executable, "-c", PROGRAM, str(recipe), *overrides]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        if number:
            seconds.append(float(done.stdout.split()[-1]) - start)
    print(f"  first token after {median(seconds):.2f} s", flush=True)
    return {"seconds": seconds}
