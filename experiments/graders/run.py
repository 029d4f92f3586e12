"""Known answers to the graders: gold solutions must score 1, mutated ones 0, suite by suite.

    .venv/bin/python experiments/graders/run.py FOLDER

FOLDER holds the suites' files (docs/evaluation.md). Writes `results.json` and the table in `README.md` beside this
file, kind by kind; what is there already is not measured again. Some ten minutes on two cores.
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.progress import Progress

from gopd.evaluate.problem import Problem, Reading
from gopd.evaluate.tasks import TASKS, load
from gopd.verify import code, evalplus

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"

CHANGE = """
def _changed(value):
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float, complex)):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, (list, tuple)):
        return value + type(value)([0])
    if isinstance(value, dict):
        return value | {"x": 0}
    if isinstance(value, set):
        return value ^ {0}
    return None
def _retyped(value):
    return [value] if isinstance(value, str) else repr(value)
def _reversed(value):
    return value[::-1] if isinstance(value, (list, tuple, str)) else value
"""
"""Ways to be wrong, as functions of the right value."""

MUTATIONS = {
    "off by one": "_changed(_gold(*arguments))",
    "wrong type": "_retyped(_gold(*arguments))",
    "wrong order": "_reversed(_gold(*arguments))",
    "empty": "None",
    "exception": "1 / 0",
    "infinite loop": "next(n for n in iter(int, 1) if n)",
}
BOXES: dict[str, Callable[[str], str]] = {
    "off by one": lambda gold: f"{gold}+1",
    "wrong type": lambda gold: r"\text{an answer}",
    "wrong order": lambda gold: gold[::-1],
    "empty": lambda gold: "",
    "exception": lambda gold: r"\frac{1}{0}",
    "infinite loop": lambda gold: "9^{9^{9^{9^{9}}}}",
}
BOMBS = 5
"""Of each suite of mathematics only so many towers of powers: each takes 5 s, and a new process afterwards."""
MATHEMATICS = ("aime24", "aime25", "hmmt25_feb", "hmmt25_nov", "math500", "gsm8k")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    data, results = Path(sys.argv[1]), HERE / "results.json"
    evalplus._SHORTEST = 0.5  # seconds; the loops would take an hour
    suites: dict[str, Callable[[], list[Case]]] = {
        "livecodebench format": partial(livecodebench, data),
        "apps format": partial(apps, data),
        **{name: partial(mathematics, name, data) for name in MATHEMATICS},
        "humaneval+": partial(functions, "humaneval+", data, data / "HumanEvalPlus.jsonl.gz"),
        "mbpp+": partial(functions, "mbpp+", data, data / "MbppPlus.jsonl.gz"),
    }
    found: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    with Progress() as bars, TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache  # so that what should come back is computed, and its time seen
        for name, cases in suites.items():
            kept = found.setdefault(name, {"reading": None, "seconds": {}, "cases": {}, "unexpected": {}})
            for _ in measured(bars, name, cases, kept):
                results.write_text(json.dumps(found, indent=1) + "\n")
    write(found)


Case = tuple[str, str, Callable[[str], Any], str]
"""Which problem, what was done to its gold, its judge, and the response."""


def mathematics(name: str, data: Path) -> list[Case]:
    problems = read(name, data)
    golds = [problem.judge.args[0] for problem in problems]  # type: ignore[attr-defined]
    rows = [
        (problem.id, how, problem.judge, f"So \\boxed{{{change(gold)}}}.")
        for i, (problem, gold) in enumerate(zip(problems, golds, strict=True))
        for how, change in ({"gold": str} | BOXES).items()
        if change(gold) != gold or how == "gold"
        if how != "infinite loop" or i < BOMBS
    ]
    return rows


def functions(name: str, data: Path, file: Path) -> list[Case]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = {row["task_id"]: row for row in map(json.loads, lines)}
    cases: list[Case] = []
    for problem in read(name, data):
        row = rows[problem.id]
        solution, function = row["prompt"] + row["canonical_solution"], row["entry_point"]
        cases.append((problem.id, "gold", problem.judge, fenced(solution)))
        for how, text in mutated(solution, function):
            if how != "wrong order" or ordered(problem.judge.args[0]):  # type: ignore[attr-defined]
                cases.append((problem.id, how, problem.judge, fenced(text)))
    return cases


def ordered(problem: evalplus.Problem) -> bool:
    """Whether some value that should come back is another one backwards, and order counts."""
    if (problem.suite, problem.function) in evalplus._ORACLES:
        return False
    values = [*problem.base.expected, *problem.plus.expected]
    return any(isinstance(value, list | tuple | str) and value[::-1] != value for value in values)


def mutated(solution: str, function: str) -> list[tuple[str, str]]:
    """The solution with its function replaced by one that spoils the result."""
    made = []
    for how, value in MUTATIONS.items():
        body = f"_gold = {function}\ndef {function}(*arguments):\n    return {value}\n"
        made.append((how, f"{solution}\n{CHANGE}\n{body}"))
    return made


def livecodebench(data: Path) -> list[Case]:
    golds = {
        "syn_a": "n, *a = map(int, open(0).read().split())\nprint(sum(a))",
        "syn_b": "class Solution:\n    def add(self, a, b): return a + b",
    }
    spoiled = {
        "syn_a": {
            **{"off by one": "print(sum(map(int, open(0).read().split())) + 1)", "wrong type": "print([1])"},
            **{"empty": "", "exception": "1 / 0", "infinite loop": "while True: pass"},
        },
        "syn_b": {
            how: f"class Solution:\n    def add(self, a, b): {body}"
            for how, body in {
                **{
                    "off by one": "return a + b + b",
                    "wrong type": "return str(a + b)",
                    "wrong order": "return b + a",
                },
                **{"empty": "pass", "exception": "1 / 0"},
            }.items()
        },
    }
    cases: list[Case] = []
    for problem in load(TASKS["livecodebench_v6"], data / "lcb_synthetic.jsonl", Reading(), lambda *_: None):
        cases.append((problem.id, "gold", problem.judge, fenced(golds[problem.id])))
        cases += [(problem.id, how, problem.judge, fenced(text)) for how, text in spoiled[problem.id].items()]
    return cases


def apps(data: Path) -> list[Case]:
    """Whole programs with their own solutions; the output of a gold is spoiled by what runs around it."""
    cases: list[Case] = []
    for line in (data / "apps_sample.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        truth, solution = row["input_output"], row["solutions"][0]
        if "fn_name" in truth:
            continue
        problem = code.parse_ground_truth(json.dumps(truth))

        def judge(response: str, problem: code.Problem = problem) -> Any:
            return code.judge(problem, response)

        cases.append((row["problem_id"], "gold", judge, fenced(solution)))
        for how, text in {
            "off by one": f"{solution}\nprint(1)",
            "empty": "",
            "exception": f"{solution}\n1 / 0",
            "infinite loop": "while True: pass",
        }.items():
            cases.append((row["problem_id"], how, judge, fenced(text)))
    return cases


def read(name: str, data: Path) -> list[Problem]:
    return load(TASKS[name], data, Reading(), lambda *_: None)


def fenced(program: str) -> str:
    return f"```python\n{program}\n```\n"


def measured(
    bars: Progress, name: str, made: Callable[[], list[Case]], found: dict[str, Any]
) -> Iterator[None]:
    """Adds to what is found kind by kind: the score, which are not as they should be, seconds; and those of reading."""
    task = bars.add_task(name)
    start = time.perf_counter()
    cases = made()
    found["reading"] = found["reading"] or round(time.perf_counter() - start, 1)
    bars.update(task, total=len(cases))
    for how in dict.fromkeys(how for _, how, _, _ in cases):
        mine = [case for case in cases if case[1] == how]
        bars.update(task, advance=len(mine))
        if how in found["cases"]:
            continue
        start = time.perf_counter()
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            verdicts = list(pool.map(lambda case: case[2](case[3]), mine))
        found["seconds"][how] = round(time.perf_counter() - start, 1)
        found["cases"][how] = [sum(v.right for v in verdicts), len(mine)]
        wrong = [c[0] for c, v in zip(mine, verdicts, strict=True) if v.right != (how == "gold")]
        if wrong:
            found["unexpected"][how] = wrong
        yield


def write(found: dict[str, Any]) -> None:
    kinds = ["gold", *MUTATIONS]
    lines = [
        "| suite | " + " | ".join(kinds) + " | reading, s | golds, s |",
        "|---|" + "---|" * (len(kinds) + 2),
    ]
    for name, row in found.items():
        cells = ["{} / {}".format(*row["cases"][kind]) if kind in row["cases"] else "" for kind in kinds]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {row['reading']} | {row['seconds']['gold']} |")
    listed = [
        f"- {name}, {how}: {', '.join(ids)}"
        for name, row in found.items()
        for how, ids in row["unexpected"].items()
    ]
    path = HERE / "README.md"
    text = path.read_text(encoding="utf-8")
    head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
    body = "\n".join(
        [*lines, "", "Not as they should be:" if listed else "All as they should be.", "", *listed]
    )
    path.write_text(f"{head}{BEGIN}\n{body}\n\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
