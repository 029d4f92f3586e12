"""What the doctor measures on the tiny family, healthy and sick: where its thresholds come from.

    python experiments/doctor/measure.py --vllm

Without `--vllm` the engine vLLM is left out. The table is in README.md.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM

from gopd.console import Display
from gopd.doctor.command import examine
from gopd.doctor.evidence import Request
from gopd.doctor.show import Diagnosis
from gopd.recipe_file import load_recipe
from gopd.rows import resolve

RECIPE = "recipes/quickstart.yaml"
QUICK = ["validation=null"]


def random_student(folder: Path) -> Path:
    """The builtin base's shape and tokenizer with random weights."""
    base = resolve("builtin:base")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (folder / name).write_bytes((base / name).read_bytes())
    return folder


def cases(folder: Path) -> dict[str, list[str]]:
    large = [
        "student.model=builtin:large-base",
        "teachers={math: {model: builtin:large-math}}",
        "data.route=math",
    ]
    found = {
        "quickstart, float32": [],
        "quickstart, bfloat16": ["train.compute_dtype=bfloat16"],
        "saturated teachers": [
            "teachers={math: {model: builtin:math-saturated}, code: {model: builtin:code-saturated}}"
        ],
        "large base and its teacher": [*large, "data.keep_sources=[tiny/arithmetic]"],
        "large base, teacher of the small one": [
            "student.model=builtin:large-base",
            "reference={model: builtin:base}",
        ],
        "random student": [f"student.model={random_student(folder)}"],
        "random student, reference of the teachers": [
            f"student.model={random_student(folder)}",
            "reference={model: builtin:base}",
        ],
    }
    if "--vllm" in sys.argv:
        found["quickstart, vLLM, float32"] = ["sampler.engine=vllm", "sampler.vllm.memory_share=0.1"]
    return found


def figures(diagnosis: Diagnosis) -> dict[str, Any]:
    return {finding.check: dict(finding.figures) for finding in diagnosis.findings}


def line(name: str, seen: dict[str, Any]) -> str:
    sampler, moved = seen["sampler"], max(seen["steadiness"]["moved"].values())
    gaps, overlaps = of_each(seen["gap"], "mean_size"), of_each(seen["overlap"], "mass")
    shared, ends = of_each(seen["overlap"], "shared"), seen["endings"].get("gaps", {}).values()
    cells = [
        name,
        f"{sampler['mean']:.2g}, {sampler['max']:.2g}",
        f"{moved:.2g}",
        ", ".join(f"{v:.2g}" for v in gaps),
        ", ".join(f"{v:.2%}" for v in overlaps),
        ", ".join(f"{v:.0%}" for v in shared),
        f"{min(ends, default=0.0):+.2f}",
        ", ".join(f"{seen['responses'][name]:.0%}" for name in ("truncated", "empty", "in_circles")),
    ]
    return "| " + " | ".join(cells) + " |"


def of_each(found: dict[str, Any], figure: str) -> list[float]:
    """Of the only teacher or of each."""
    return [found[figure]] if figure in found else [part[figure] for part in found.values()]


def main() -> None:
    heads = [
        "case",
        "sampler gap: mean, max",
        "moved",
        "gap",
        "mass",
        "shared",
        "ends, least",
        "cut, empty, circles",
    ]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for name, overrides in cases(Path(folder)).items():
            recipe = load_recipe(RECIPE, [*QUICK, *overrides])
            request = Request(recipe, RECIPE, overrides, rows=64)
            print(line(name, figures(examine(request, Display(Console(stderr=True))))), flush=True)


if __name__ == "__main__":
    main()
