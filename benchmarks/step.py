"""Whole optimizer steps against TRL, interleaved: one step each in turn."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import models
import yaml
from turns import Answer, Player, players

HERE = Path(__file__).resolve().parent
ALL = (("TRL stable", "gopd full", "gopd sampled"), ("TRL sampled", "gopd sampled"))
"""Programs that run side by side, team by team; all four at once would not fit the memory."""
STABLE = (("TRL stable", "gopd full"),)
BOTH = (("TRL stable", "gopd full", "gopd sampled"),)
WARM_UP = 2
"""First steps that do not count: until the second is over, much of gopd's time goes into getting memory, which it
keeps; TRL's is given back and got anew in every step, so for it one is enough."""
SPARE = WARM_UP + 1
"""Those, and one that is never asked for, so that no program ends, and works on, while another has its turn."""
WORK = models.ROOT / "runs" / "benchmarks"
SUFFIX = "\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Case:
    """Steps of `batch` prompts and `tokens` new tokens each; `endless`: no response ends before."""

    student: Path
    prompts: list[str]
    batch: int
    tokens: int
    endless: bool
    teams: Sequence[Sequence[str]]
    rounds: int = 2


def run(quick: bool, gsm8k: Path | None) -> dict[str, Any]:
    """Results by case: gopd's `full` estimator against TRL's stable trainer, in one also `sampled` against both."""
    return {name: compare(case) for name, case in cases(quick, gsm8k).items()}


def cases(quick: bool, gsm8k: Path | None) -> dict[str, Case]:
    """By name."""
    tiny = models.endless("tiny", models.tiny())
    found = {"tiny family, 64 prompts × 64 tokens": Case(tiny, arithmetic(64 * 12), 64, 64, True, ALL, 5)}
    if quick:
        return found
    smollm2 = models.smollm2()
    endless = models.endless("smollm2", smollm2)
    for tokens, teams in ((64, BOTH), (128, STABLE)):
        name = f"SmolLM2-135M, 16 prompts × {tokens} tokens"
        found[name] = Case(endless, arithmetic(16 * 6), 16, tokens, True, teams)
    if gsm8k is not None:
        name = "SmolLM2-135M, 16 GSM8K prompts, up to 128 tokens"
        found[name] = Case(smollm2, questions(gsm8k, 16 * 6), 16, 128, False, STABLE)
    return found


def arithmetic(count: int) -> list[str]:
    """Prompts of nearly one length."""
    return [f"what is {i % 97} + {(i * 31) % 89}? answer with words and explain" for i in range(count)]


def questions(folder: Path, count: int) -> list[str]:
    """GSM8K questions, shorter than 600 characters."""
    rows = (json.loads(line) for line in (folder / "gsm8k_train.jsonl").open())
    return [row["question"] + SUFFIX for row in rows if len(row["question"]) < 600][:count]


def compare(case: Case) -> dict[str, Any]:
    """Each program's answers, the first steps of each left out, and ratios to gopd round by round."""
    rows = write_rows(case.prompts)
    teacher = models.other(case.student.name, case.student)
    sizes = (case.batch, case.tokens, case.rounds + SPARE)
    results = []
    for team in case.teams:
        commands = {
            name: trl_command(name, case.student, teacher, rows, sizes, case.endless)
            if name.startswith("TRL")
            else gopd_command(
                gopd_recipe(name, case.student, teacher, rows, sizes),
                f"objective.estimator={name.split()[1]}",
            )
            for name in team
        }
        answers = interleaved(commands, case.rounds)
        results.append({"answers": answers, "ratios": ratios(answers)})
    return {"teams": results}


def write_rows(prompts: Sequence[str], routes: Sequence[str] = ("teacher",)) -> Path:
    """JSONL of prompts, the routes taking turns."""
    WORK.mkdir(parents=True, exist_ok=True)
    rows = WORK / f"rows-{len(prompts)}-{len(routes)}.jsonl"
    with rows.open("w") as file:
        for i, prompt in enumerate(prompts):
            row = {
                "prompt": [{"role": "user", "content": prompt}],
                "data_source": "bench",
                "extra_info": {"opd_teacher": routes[i % len(routes)]},
            }
            file.write(json.dumps(row) + "\n")
    return rows


def trl_command(
    name: str, student: Path, teacher: Path, rows: Path, sizes: tuple[int, int, int], endless: bool
) -> list[str | Path]:
    script = HERE / "workers" / "trl_step.py"
    batch, tokens, steps = sizes
    options = [f"--batch={batch}", f"--tokens={tokens}", f"--steps={steps}", *["--endless"] * endless]
    return [sys.executable, script, name.split()[1], student, teacher, rows, *options]


def gopd_recipe(name: str, student: Path, teacher: Path, rows: Path, sizes: tuple[int, int, int]) -> Path:
    """A recipe file of plain distillation, λ = 1; sizes are batch, tokens, steps."""
    name, (batch, tokens, steps) = name.replace(" ", "-"), sizes
    tree = {
        "student": {"model": str(student)},
        "teachers": {"teacher": {"model": str(teacher)}},
        "objective": {"reward_scale": 1.0},
        "data": {
            "files": [str(rows)],
            "verifier": "none",
            "max_prompt_tokens": 512,
            "max_response_tokens": tokens,
            "shuffle": False,
        },
        "sampler": {"slots": batch},
        "optim": {"lr": 1e-5},
        "train": {"steps": steps, "prompts_per_step": batch, "tokens_per_micro_batch": 4096},
        "checkpoint": {"every": 0},
        "tracking": {"folder": str(WORK), "name": name},
    }
    path = WORK / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    shutil.rmtree(WORK / name, ignore_errors=True)
    return path


def gopd_command(recipe: Path, *overrides: str) -> list[str | Path]:
    return [sys.executable, HERE / "workers" / "gopd_step.py", recipe, *overrides]


def interleaved(commands: dict[str, list[str | Path]], rounds: int) -> dict[str, list[Answer]]:
    """Steps in turn, after those that do not count."""
    with players(commands) as team:
        everyone: list[Player] = list(team.values())
        for number in range(WARM_UP):
            for player in everyone:
                if number == 0 or not player.name.startswith("TRL"):
                    player.turn()
        answers: dict[str, list[Answer]] = {player.name: [] for player in everyone}
        for number in range(rounds):
            for player in everyone:
                answer = player.turn()
                answers[player.name].append(answer)
                print(f"  {player.name}, round {number + 1}: {answer['seconds']:.2f} s", flush=True)
    return answers


def ratios(answers: dict[str, list[Answer]]) -> dict[str, dict[str, float]]:
    """How many times as long TRL takes: median, least and greatest over rounds."""
    found = {}
    for theirs in (name for name in answers if name.startswith("TRL")):
        for ours in (name for name in answers if name.startswith("gopd")):
            pairs = zip(answers[theirs], answers[ours], strict=True)
            values = [their["seconds"] / our["seconds"] for their, our in pairs]
            found[f"{theirs} / {ours}"] = {
                "median": median(values),
                "min": min(values),
                "max": max(values),
            }
    return found
