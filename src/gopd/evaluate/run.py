"""The stages of an evaluation: read and check everything, sample, grade alongside, write down, sum up."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gopd import __version__, sandbox, views
from gopd.console import Display
from gopd.errors import BadInput
from gopd.evaluate import results as kept
from gopd.evaluate.figures import Figures, check_pass_at, figures
from gopd.evaluate.problem import Problem, Reading
from gopd.evaluate.results import Key, Record, TaskResults
from gopd.evaluate.show import table
from gopd.evaluate.tasks import MAX_TOKENS, TASKS, Task, load
from gopd.model import LanguageModel, context_length, load_model, load_tokenizer, model_source
from gopd.sampler import Request, Response
from gopd.sampler.torch import TorchSampler
from gopd.sections import ModelSpec, SamplingSection, View
from gopd.setup import choose_device
from gopd.types import Prompt

EVALUATION = 3
"""First number of the random streams here; training, validation and generation have 0, 1 and 2."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to evaluate; the defaults are the published settings. `samples` None: the task's own number.

    `completion` gives the prompt's text as it is, for models without a chat template. `data` is a folder with the
    tasks' files, None: they come from where they are published.
    """

    samples: int | None = None
    sampling: SamplingSection = field(default_factory=SamplingSection)
    max_tokens: int = MAX_TOKENS
    seed: int = 0
    slots: int = 64
    view: View = field(default_factory=View)
    completion: bool = False
    reading: Reading = field(default_factory=Reading)
    data: Path | None = None
    pass_at: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class _Job:
    """One model's work on one task: its problems as token ids, and what is known of the answers."""

    task: Task
    problems: list[Problem]
    prompts: list[list[int]]
    texts: list[str]
    samples: int
    results: TaskResults

    def wanted(self) -> list[Key]:
        """Every problem, every sample."""
        return [(problem.id, n) for problem in self.problems for n in range(self.samples)]


def evaluate(
    models: Sequence[str],
    tasks: Sequence[Task],
    folder: Path,
    options: Options,
    display: Display | None = None,
) -> dict[tuple[str, str], Figures]:
    """Every model on every task; returns the figures by (model, task), and shows and writes them.

    What is sampled and graded already, in an earlier run with the same configuration, is not done again. Raises
    BadInput for anything that cannot work before the first response is drawn.
    """
    display = display or Display()
    for task in tasks:
        check_pass_at(options.pass_at, options.samples or task.samples)
    if any(task.domain == "code" for task in tasks):
        sandbox.isolation()
    names = _names(models)
    tokenizers = {model: load_tokenizer(ModelSpec(model=model), model) for model in models}
    problems = _load(tasks, options, display)
    jobs = {
        model: [
            _job(
                model,
                tokenizers[model],
                task,
                problems[task.name],
                folder / names[model] / task.name,
                options,
            )
            for task in tasks
        ]
        for model in models
    }
    rows: dict[tuple[str, str], Figures] = {}
    for model in models:
        _answer(model, jobs[model], options, display)
        found = {name: row for job in jobs[model] for name, row in _summarized(job, options.pass_at).items()}
        entries = {name: row.entry() for name, row in found.items()}
        kept.write_summary(folder / names[model], {"model": model, "gopd": __version__, "tasks": entries})
        rows |= {(names[model], name): row for name, row in found.items()}
    display.console.print(table(rows))
    display.say(f"every sample with its verdict: {folder}")
    return rows


def grade_again(folder: Path, reading: Reading, data: Path | None, display: Display | None = None) -> None:
    """Grades all samples in a results folder anew; nothing is sampled. An interrupted run goes on where it was."""
    display = display or Display()
    folders = kept.task_folders(folder)
    tasks = {path: TASKS[TaskResults(path).settings["task"]] for path in folders}
    if any(task.domain == "code" for task in tasks.values()):
        sandbox.isolation()
    problems = _load(list(dict.fromkeys(tasks.values())), Options(reading=reading, data=data), display)
    rows: dict[tuple[str, str], Figures] = {}
    for path, task in tasks.items():
        results = TaskResults(path)
        wanted = _grading(task, reading)
        if results.settings["grading"] != wanted or kept.complete(list(results.records.values())):
            results.ungrade()
            results.open(results.settings | {"grading": wanted})
        by_id = {problem.id: problem for problem in problems[task.name]}
        if unknown := next((problem for problem, _ in results.records if problem not in by_id), None):
            raise BadInput(
                f"{path}: problem {unknown!r} is not in the task's data; give those it was sampled with"
            )
        with _Grader(results, by_id) as grader:
            grader.submit(key for key in results.records if "reason" not in results.records[key])
            grader.wait(display, f"{path.parent.name}: grading {task.name}")
        results.close(list(by_id))
        grouped: dict[str, list[Record]] = {}
        for (problem, _), record in results.records.items():
            grouped.setdefault(problem, []).append(record)
        found = _rows(task, list(grouped.values()), ())
        rows |= {(path.parent.name, name): row for name, row in found.items()}
    for model in dict.fromkeys(model for model, _ in rows):
        entries = {name: row.entry() for (owner, name), row in rows.items() if owner == model}
        home = next(path.parent for path in folders if path.parent.name == model)
        spec = TaskResults(next(path for path in folders if path.parent == home)).settings["model"]
        kept.write_summary(home, {"model": spec, "gopd": __version__, "tasks": entries})
    display.console.print(table(rows))


def _names(models: Sequence[str]) -> dict[str, str]:
    """A folder name for each model. Raises BadInput when two would share one."""
    names = {model: (Path(model).name or model).removeprefix("builtin:") for model in models}
    for model, name in names.items():
        if same := next((other for other in models if other != model and names[other] == name), None):
            raise BadInput(
                f"{model} and {same} would share the folder {name}; evaluate them into folders of their own"
            )
    return names


def _load(tasks: Sequence[Task], options: Options, display: Display) -> dict[str, list[Problem]]:
    """All problems of all tasks."""
    found = {}
    with display.run(len(tasks), 0):
        for task in tasks:
            with display.phase(f"{task.name}: reading", 1) as bar:
                found[task.name] = load(task, options.data, options.reading, bar.of)
            display.advance()
    return found


def _job(
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: list[Problem],
    folder: Path,
    options: Options,
) -> _Job:
    """Checks what can be checked without the weights."""
    prompts = _prompts(model, tokenizer, problems, options)
    longest, context = max(map(len, prompts)), context_length(ModelSpec(model=model), model)
    if longest + options.max_tokens > context:
        raise BadInput(
            f"{model}: a prompt of {longest} tokens ({task.name}) and a response of {options.max_tokens} exceed its "
            f"context of {context}; give --max-tokens {context - longest} or less"
        )
    texts = tokenizer.batch_decode(prompts)
    results = TaskResults(folder)
    view = {name: value for name, value in options.view if name in ("system", "enable_thinking")}
    sampling = options.sampling.model_dump() | {"max_tokens": options.max_tokens, "seed": options.seed}
    settings = {
        **{"task": task.name, "model": model, "weights": _fingerprint(model), "gopd": __version__},
        **{"prompt": view | {"completion": options.completion}, "sampling": sampling},
        "grading": _grading(task, options.reading),
    }
    known = {problem.id: text for problem, text in zip(problems, texts, strict=True)}
    for (problem, _), record in results.records.items():
        if problem in known and record["prompt"] != known[problem]:
            raise BadInput(f"{folder}: problem {problem} was asked in other words; give a new folder by --to")
    results.open({**settings, "gopd": results.settings.get("gopd", __version__)})
    return _Job(task, problems, prompts, texts, options.samples or task.samples, results)


def _grading(task: Task, reading: Reading) -> dict[str, Any]:
    """With what is graded: rules that change verdicts."""
    found: dict[str, Any] = {"golds": reading.golds}
    if task.domain == "code":
        found = {"sandbox": sandbox.isolation()}
    if task.name.startswith("livecodebench"):
        found["rules"] = "reference" if reading.lcb_compat else "gopd"
    return found


def _prompts(
    model: str, tokenizer: PreTrainedTokenizerBase, problems: Sequence[Problem], options: Options
) -> list[list[int]]:
    if options.completion:
        encoded: list[list[int]] = tokenizer([problem.text + "\n" for problem in problems])["input_ids"]
        return encoded
    try:
        views.check_view(options.view, tokenizer, model)
    except BadInput as error:
        raise BadInput(f"{error}; or give the prompts as plain text by --completion") from error
    prompts = [
        Prompt(i, problem.id, ({"role": "user", "content": problem.text},), "", "none", None, None, None, {})
        for i, problem in enumerate(problems)
    ]
    return views.render(options.view, prompts, tokenizer)


def _fingerprint(model: str) -> str:
    """Tells weights in a folder from others; of a Hub name it is the name."""
    source = Path(model_source(ModelSpec(model=model), model))
    if not source.is_dir():
        return str(source)
    found = hashlib.sha256()
    for path in sorted(source.glob("*.safetensors")):
        with path.open("rb") as file:
            found.update(f"{path.name} {path.stat().st_size} ".encode() + file.read(1 << 16))
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            found.update(file.read())
    return found.hexdigest()[:16]


def _answer(model: str, jobs: Sequence[_Job], options: Options, display: Display) -> None:
    """Samples and grades what is missing of all tasks of one model."""
    language_model: LanguageModel | None = None
    with display.run(len(jobs), 0):
        for job in jobs:
            with _Grader(job.results, {problem.id: problem for problem in job.problems}) as grader:
                known = [key for key in job.wanted() if key in job.results.records]
                grader.submit(key for key in known if "reason" not in job.results.records[key])
                if len(known) < len(job.wanted()):
                    language_model = language_model or _loaded(model)
                    _sample(language_model, job, options, grader, display)
                grader.wait(display, f"{job.task.name}: grading")
            job.results.close([problem.id for problem in job.problems])
            display.advance()


def _loaded(model: str) -> LanguageModel:
    device, dtype = choose_device("auto", "auto")
    return load_model(ModelSpec(model=model), model, device=device, dtype=dtype).freeze()


def _sample(model: LanguageModel, job: _Job, options: Options, grader: _Grader, display: Display) -> None:
    """Draws the missing responses; each is kept, and goes to its grader, as soon as it is finished."""
    rows = [(i, n) for i in range(len(job.problems)) for n in range(job.samples)]
    rows = [(i, n) for i, n in rows if (job.problems[i].id, n) not in job.results.records]
    requests = [
        Request(job.prompts[i], (options.seed, EVALUATION, _number(job, i), n), options.max_tokens)
        for i, n in rows
    ]

    def finished(number: int, response: Response) -> None:
        i, n = rows[number]
        key = (job.problems[i].id, n)
        job.results.sampled(
            {
                **{"problem": key[0], "sample": n, "prompt": job.texts[i]},
                "response": model.tokenizer.decode(response.ids, skip_special_tokens=True),
                **{"tokens": len(response.ids), "finished": response.finished},
            }
        )
        grader.submit([key])

    with display.phase(f"{job.task.name}: sampling", len(requests)) as bar:
        TorchSampler(model, options.slots).sample(requests, options.sampling, bar.sampled, finished)


def _number(job: _Job, i: int) -> int:
    """Of a problem, the same whichever others are asked."""
    name = f"{job.task.name}/{job.problems[i].id}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")


class _Grader:
    """Grades in threads of its own: programs run side by side, one for each CPU; mathematics has one process anyway."""

    def __init__(self, results: TaskResults, problems: dict[str, Problem]) -> None:
        self.results, self.problems = results, problems
        self._pool = ThreadPoolExecutor(max_workers=os.cpu_count())
        self._running: list[Future[None]] = []

    def __enter__(self) -> _Grader:
        return self

    def __exit__(self, *_: object) -> None:
        """What is not begun stays ungraded."""
        self._pool.shutdown(cancel_futures=True)

    def submit(self, keys: Iterable[Key]) -> None:
        """Grades these when there is time."""
        for key in keys:
            self._running.append(self._pool.submit(self._grade, key))

    def wait(self, display: Display, name: str) -> None:
        """Until all are graded. Raises what a grader raised."""
        with display.phase(name, len(self._running)) as bar:
            for done, one in enumerate(self._running, 1):
                one.result()
                bar.rows(done)

    def _grade(self, key: Key) -> None:
        verdict = self.problems[key[0]].judge(self.results.records[key]["response"])
        self.results.graded(key, verdict)


def _summarized(job: _Job, pass_at: Sequence[int]) -> dict[str, Figures]:
    records = [[job.results.records[p.id, n] for n in range(job.samples)] for p in job.problems]
    return _rows(job.task, records, pass_at)


def _rows(task: Task, records: Sequence[Sequence[Record]], pass_at: Sequence[int]) -> dict[str, Figures]:
    """A suite's figures; where it has base tests, theirs come first, under its name without the plus."""
    found = {task.name: figures(records, task.domain, pass_at)}
    if task.name.endswith("+"):
        base = figures(records, task.domain, pass_at, lambda record: bool(record["base"]))
        found = {task.name.removesuffix("+"): base} | found
    return found
