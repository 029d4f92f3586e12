"""Every command of README.md and docs/*.md is run, page by page, as somebody would who follows the page.

Each page has a folder of its own, in which lie what the reader is supposed to have (`HAS`) and what the page itself
says is in a file. Lines are typed as they stand there, but for what `CHANGES` makes small enough for a test.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import gopd
from gopd import cli
from pages import PAGES, ROOT, File, blocks, name, steps

TINY = Path(gopd.__file__).parent / "tiny"
QUICK = "train.steps=1 train.prompts_per_step=2 validation.limit=4"
SMALL = "train.steps=1 train.prompts_per_step=2 data.max_prompt_tokens=64 data.max_response_tokens=16"

CHANGES: dict[str, dict[str, str]] = {
    "README.md": {
        "$(date +%Y%m%d-%H%M%S)": f"now {QUICK}",
        "train mine.yaml": f"train mine.yaml {SMALL}",
        "--to results": "--to results --n 1 --max-tokens 8",
    },
    "docs/doctor.md": {
        "RECIPE [section.key=value …] [--rows N] [--problems N] [--json]": "recipes/quickstart.yaml train.steps=3 "
        "--rows 4 --problems 4",
    },
    "docs/evaluation.md": {
        "MODEL [MODEL …]": "a b",
        "--to results": "--to results --n 1 --max-tokens 8",
    },
    "docs/faq.md": {"train mine.yaml": f"train mine.yaml {SMALL}"},
    "docs/how-to.md": {
        "train mine.yaml": f"train mine.yaml {SMALL}",
        "doctor imported.yaml": "doctor imported.yaml sampler.engine=torch tracking.trackers=[] "
        "data.max_response_tokens=48 --rows 2 --problems 2",
    },
    "docs/import-verl.md": {
        "train mine.yaml": "train mine.yaml train.epochs=null train.steps=1 tracking.trackers=[]",
    },
    "docs/recipe.md": {
        "generate mine.yaml": "generate mine.yaml data.max_prompt_tokens=64 data.max_response_tokens=16",
        "train sft.yaml": f"train sft.yaml {SMALL}",
    },
    "docs/report.md": {"--steps 1,40-45": "--steps 1,4-5", "/shared/": "shared/"},
    "docs/tour.md": {
        "$(date +%Y%m%d-%H%M%S)": f"now {QUICK}",
        "tracking.name=first": f"tracking.name=first {QUICK}",
    },
}
"""What a test makes smaller, or what stands for the reader's own."""

CANNOT: dict[tuple[str, str], str] = {
    (
        "docs/how-to.md",
        "gopd train mine.yaml --cluster local cluster.learner_ranks=4 cluster.sampler_replicas=2",
    ): "eight processes; README.md's command is the same with fewer, and is run",
    (
        "docs/how-to.md",
        "gopd push runs/mine my-name/my-student --private",
    ): "the Hub; tests/test_publish.py runs it against one of its own",
    ("docs/scaling.md", "ray start --head --port=6379"): "a Ray of the whole machine, beside other tests",
    ("docs/scaling.md", "ray start --address=HEAD:6379"): "a second machine",
    ("docs/scaling.md", "gopd train recipe.yaml --cluster auto"): "the Ray started above",
    ("docs/scaling.md", "#!/bin/bash"): "Slurm",
}
"""What no test machine has, or has no time for, by page and line (of a script its first); `gopd` in it is parsed."""

SHOWN = {
    "README.md": r"│ (student \w+|teacher \w+) |┃ +([a-z]+/[a-z]+|KL to [^┃]+) ┃",
    "docs/doctor.md": r"^(?:✓|!|✗|–) (?:fine|warning|stop|unmeasured) +(\w+)",
}
"""What the page's output blocks have of this, its commands print too."""

LEFT = {
    "README.md": "runs/mine/student/model.safetensors report.html results/student/summary.json",
    "docs/evaluation.md": "results/a/summary.json results/a/aime24/samples.jsonl results/a/math500/settings.json",
    "docs/how-to.md": "extrapolated/model.safetensors",
    "docs/recipe.md": "runs/teachers/responses.parquet runs/sft/student/model.safetensors",
    "docs/report.md": "runs/mine/report.html exopd-against-opd.html shared/runs/mine/report.html",
    "docs/tour.md": "runs/first/report.html runs/mine/student/model.safetensors",
}
"""Files that the page says are there afterwards."""

# --- what the reader has --------------------------------------------------------------------------------------------

MODELS = {
    "base": "path/to/student path/to/base a small/base small/student large/before-rl",
    "math": "path/to/math-expert b math/expert large/after-rl",
    "code": "path/to/code-expert code/expert",
}
"""Names of models in pages and scripts, by the tiny model that stands for them."""


def models(folder: Path) -> None:
    for tiny, names in MODELS.items():
        for each in names.split():
            (folder / each).parent.mkdir(parents=True, exist_ok=True)
            (folder / each).symlink_to(TINY / tiny)


def prompts(folder: Path) -> None:
    """A row for each teacher, with the columns that README.md names."""
    rows = pq.read_table(TINY / "train.parquet").to_pylist()
    chosen = [next(r for r in rows if r["extra_info"]["opd_teacher"] == route) for route in ("math", "code")]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))


def mine(folder: Path) -> None:
    """README.md's recipe."""
    (recipe,) = (step for step in steps(ROOT / "README.md") if isinstance(step, File))
    (folder / recipe.name).write_text(recipe.text)


def suites(folder: Path) -> None:
    """Two problems of each suite that pages name."""
    folder = folder / "FOLDER"
    folder.mkdir()
    for file, question, answer in (
        ("aime24.jsonl", "problem", "{}"),
        ("math500.jsonl", "problem", "{}"),
        ("gsm8k_test.jsonl", "question", "so\n#### {}"),
    ):
        rows = [{question: f"What is {n}+4?", "answer": answer.format(n + 4)} for n in (1, 2)]
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    program = {"prompt": "def f(x):\n", "canonical_solution": "    return x + 1\n", "entry_point": "f"}
    row = {"task_id": "HumanEval/0", **program, "base_input": [[1]], "plus_input": [[2]], "atol": 0}
    with gzip.open(folder / "HumanEvalPlus.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")


def scripts(folder: Path) -> None:
    """Launches of verl, and the rows that they train on."""
    single = (ROOT / "tests/verl/single.sh").read_text()
    (folder / "run.sh").write_text(single.replace("path=small/student", "path=${MODEL:-small/student}"))
    shutil.copy(ROOT / "tests/verl/several.sh", folder / "run_qwen3-4b-g-opd.sh")
    (folder / "rows").mkdir()
    for file, rows in (("train", "train"), ("held", "heldout")):
        (folder / f"rows/{file}.parquet").symlink_to(TINY / f"{rows}.parquet")


HAS: dict[str, tuple[Callable[[Path], None], ...]] = {
    "README.md": (prompts, suites),
    "docs/evaluation.md": (suites,),
    "docs/faq.md": (mine, prompts),
    "docs/how-to.md": (mine, prompts, scripts),
    "docs/import-verl.md": (scripts,),
    "docs/plan.md": (mine,),
    "docs/recipe.md": (mine, prompts),
    "docs/tour.md": (suites,),
}
"""Beside the models and the repository's recipes, which lie in every folder."""
RUNS = {
    "README.md": ("runs/other",),
    "docs/report.md": (
        "runs/exopd-seed0", "runs/exopd-seed1", "runs/opd-seed0", "runs/mine", "shared/runs/mine"
    ),
}  # fmt: skip
"""Run folders."""


@pytest.fixture
def reader(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, three_runs: list[Path]
) -> Path:
    """A page's reader is in this folder."""
    page = name(request.getfixturevalue("page"))
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    models(tmp_path)
    for have in HAS.get(page, ()):
        have(tmp_path)
    for number, run in enumerate(RUNS.get(page, ())):
        shutil.copytree(three_runs[number % len(three_runs)], tmp_path / run)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


# --- what the reader types ------------------------------------------------------------------------------------------


def type_in(line: str) -> tuple[int, str]:
    """Exit code and, where the command is run in a process of its own or is `make`, its output."""
    words = shlex.split(line)
    match Path(words[0]).name:
        case "gopd" if "--cluster" in words:  # as installed; it starts processes and takes over Ctrl-C
            return output(str(Path(sys.executable).with_name("gopd")), *words[1:])
        case "gopd":
            return cli.main(words[1:]), ""
        case "make":
            return output("make", "--dry-run", "--directory", str(ROOT), *words[1:])
        case "pip":
            return installs(words), ""
    pytest.fail(f"nothing runs this, and CANNOT does not have it: {line}")


def output(*words: str) -> tuple[int, str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout + done.stderr


def installs(words: list[str]) -> int:
    """0 if every extra exists, and every file of constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = (found[1].split(",") for word in words if (found := re.search(r"\[([\w,]+)\]", word)))
    files = [words[place + 1] for place, word in enumerate(words) if word == "--constraint"]
    there = all((ROOT / file).is_file() for file in files)
    return 0 if there and project["optional-dependencies"].keys() >= set(extras) else 1


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(isinstance(s, str) for s in steps(page))], ids=name
)
def test_commands_run(
    page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = CHANGES.get(name(page), {})
    unused, said = set(changes), ""
    waiting = list(steps(page))
    while waiting:
        step = waiting.pop(0)
        if isinstance(step, File):
            (reader / step.name).write_text(step.text, encoding="utf-8")
            continue
        if (name(page), step.partition("\n")[0]) in CANNOT:
            continue
        line = step
        for old, new in changes.items():
            unused -= {old} if old in line else set()
            line = line.replace(old, new)
        with monkeypatch.context() as environment:
            while found := re.match(r"(\w+)=(\S+) ", line):
                environment.setenv(found[1], found[2])
                line = line.removeprefix(found[0])
            code, more = type_in(line)
        printed = capsys.readouterr()
        assert code == 0, f"{line}\n{printed.out}{printed.err}{more}"
        said += printed.out + more
        if line.startswith("make"):  # what it would call of gopd is called
            waiting[:0] = [call for call in more.splitlines() if call.startswith(".venv/bin/gopd")]
    assert not unused, "CHANGES has what no line of the page has"
    if pattern := SHOWN.get(name(page)):
        page_says = "\n".join(text for language, text in blocks(page) if language == "text")
        promised = set(re.findall(pattern, page_says, re.MULTILINE))
        assert promised
        assert promised <= set(re.findall(pattern, said, re.MULTILINE)), said
    for file in LEFT.get(name(page), "").split():
        assert (reader / file).is_file(), file


def test_what_cannot_run_is_on_its_page_and_parses() -> None:
    for page, line in CANNOT:
        found = [s for s in steps(ROOT / page) if isinstance(s, str) and s.partition("\n")[0] == line]
        assert len(found) == 1, f"{page} has it {len(found)} times: {line}"
        (step,) = found
        for command in re.findall(r"^(?:srun .* )?gopd (.*)$", step, re.MULTILINE):
            cli._parse(shlex.split(command))
        if step.startswith("#!"):
            subprocess.run(["bash", "-n"], input=step, text=True, check=True)


@pytest.mark.parametrize("table", [CHANGES, SHOWN, LEFT, HAS, RUNS])
def test_the_tables_are_of_pages_that_there_are(table: dict[str, object]) -> None:
    assert table.keys() <= {name(page) for page in PAGES}
