"""The stages of an evaluation: read and check everything, sample, grade alongside, write down, sum up."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from gopd import __version__, views
from gopd.console import Display
from gopd.errors import BadInput
from gopd.evaluate import results as kept
from gopd.evaluate.figures import Figures, check_pass_at
from gopd.evaluate.grade import Grader, grading_settings, load_all, rows_of
from gopd.evaluate.problem import Problem, Reading
from gopd.evaluate.results import Key, TaskResults
from gopd.evaluate.show import table
from gopd.evaluate.tasks import MAX_TOKENS, Task
from gopd.model import context_length, load_tokenizer, model_source
from gopd.sampler import Request, Response, Sampler
from gopd.sections import Engine, ModelSpec, SamplerSection, SamplingSection, View, VllmSection
from gopd.setup import answering, choose_device
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
    engine: Engine = "torch"
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
    settings: dict[str, Any]

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
    names = _names(models)
    tokenizers = {model: load_tokenizer(ModelSpec(model=model), model) for model in models}
    problems = load_all(tasks, options.reading, options.data, display)
    jobs: dict[str, list[_Job]] = {model: [] for model in models}
    for model in models:
        for task in tasks:
            results = TaskResults(folder / names[model] / task.name)
            jobs[model].append(_job(model, tokenizers[model], task, problems[task.name], results, options))
    rows: dict[tuple[str, str], Figures] = {}
    for model in models:
        _answer(model, jobs[model], options, display)
        found = {name: row for job in jobs[model] for name, row in _summarized(job, options.pass_at).items()}
        entries = {name: row.entry() for name, row in found.items()}
        kept.write_summary(folder / names[model], model, entries)
        rows |= {(names[model], name): row for name, row in found.items()}
    display.console.print(table(rows))
    display.say(f"every sample with its verdict: {folder}")
    return rows


def _names(models: Sequence[str]) -> dict[str, str]:
    """A folder name for each model. Raises BadInput when two would share one."""
    names = {model: Path(os.path.abspath(model)).name.removeprefix("builtin:") for model in models}
    for model, name in names.items():
        if same := next((other for other in models if other != model and names[other] == name), None):
            raise BadInput(
                f"{model} and {same} would share the folder {name}; evaluate them into folders of their own"
            )
    return names


def _job(
    model: str,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: list[Problem],
    results: TaskResults,
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
    view = {name: value for name, value in options.view if name in ("system", "enable_thinking")}
    sampling = options.sampling.model_dump() | {"max_tokens": options.max_tokens, "seed": options.seed}
    if options.engine != "torch":
        sampling["engine"] = options.engine
    settings = {
        **{"task": task.name, "model": model, "weights": _fingerprint(model), "gopd": __version__},
        **{"prompt": view | {"completion": options.completion}, "sampling": sampling},
        "grading": grading_settings(task, options.reading),
    }
    known = {problem.id: text for problem, text in zip(problems, texts, strict=True)}
    for (problem, _), record in results.records.items():
        if problem in known and record.get("prompt") != known[problem]:
            raise BadInput(
                f"{results.folder}: problem {problem} was asked in other words; give a new folder by --to"
            )
    results.check(settings)
    return _Job(task, problems, prompts, texts, options.samples or task.samples, results, settings)


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
    engine: tuple[Sampler, PreTrainedTokenizerBase] | None = None
    with ExitStack() as stack, display.run(len(jobs), 0, f"{Path(model).name}: suites"):
        for job in jobs:
            job.results.open(job.settings)
            with Grader(job.results, {problem.id: problem for problem in job.problems}) as grader:
                known = [key for key in job.wanted() if key in job.results.records]
                grader.submit(key for key in known if "reason" not in job.results.records[key])
                if len(known) < len(job.wanted()):
                    engine = engine or _engine(model, jobs, options, stack)
                    _sample(*engine, job, options, grader, display)
                grader.wait(display, f"{job.task.name}: grading")
            job.results.close([problem.id for problem in job.problems])
            display.advance()


def _engine(
    model: str, jobs: Sequence[_Job], options: Options, stack: ExitStack
) -> tuple[Sampler, PreTrainedTokenizerBase]:
    """What answers for a model, until the stack is closed, and its tokenizer."""
    spec, machine = ModelSpec(model=model), choose_device("auto", "auto")
    vllm = VllmSection(max_sequences=options.slots)
    section = SamplerSection(engine=options.engine, slots=options.slots, vllm=vllm)
    longest = max(len(prompt) for job in jobs for prompt in job.prompts) + options.max_tokens
    engine = answering(spec, model, section, longest=longest, machine=machine, seed=options.seed)
    return stack.enter_context(engine), load_tokenizer(spec, model)


def _sample(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    job: _Job,
    options: Options,
    grader: Grader,
    display: Display,
) -> None:
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
                "response": tokenizer.decode(response.ids, skip_special_tokens=True),
                **{"tokens": len(response.ids), "finished": response.finished},
            }
        )
        grader.submit([key])

    with display.phase(f"{job.task.name}: sampling", len(requests)) as bar:
        sampler.sample(requests, options.sampling, bar.sampled, finished)


def _number(job: _Job, i: int) -> int:
    """Of a problem, the same whichever others are asked."""
    name = f"{job.task.name}/{job.problems[i].id}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "little")


def _summarized(job: _Job, pass_at: Sequence[int]) -> dict[str, Figures]:
    records = [[job.results.records[p.id, n] for n in range(job.samples)] for p in job.problems]
    return rows_of(job.task, records, pass_at)
