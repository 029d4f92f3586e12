"""Responses of the teachers to a recipe's prompts, as a file to learn from: the off-policy baseline's data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import PreTrainedTokenizerBase

from gopd import views
from gopd.console import Display
from gopd.errors import BadInput, RunFailed
from gopd.files import (
    atomic_file,
    atomic_write,
    discard,
    file_name,
    is_temporary,
    make_folder,
    sweep,
    writing,
)
from gopd.model import Description, describe, load_tokenizer
from gopd.recipe import AnyRecipe, OpdRecipe
from gopd.recipe_file import resolved_yaml
from gopd.rollouts import PromptSet, check_context, check_sandbox, grade, prompt_set, sample_rollouts
from gopd.setup import answering, device_of
from gopd.types import Rollout

GENERATION = 2
"""First number of the random streams here; training and validation have 0 and 1."""
SLOTS_PER_PART = 4
"""A part, the unit of resuming, has so many responses for each slot of the sampler."""
RESPONSES, SETTINGS, PARTS = "responses.parquet", "settings.json", "parts"
SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))),
        ("response", pa.string()),
        ("data_source", pa.string()),
        ("reward_model", pa.struct([("ground_truth", pa.string())])),
        (
            "extra_info",
            pa.struct([("opd_teacher", pa.string()), ("sample", pa.int64()), ("where", pa.string())]),
        ),
        ("reward", pa.float64()),
        ("finished", pa.bool_()),
        ("response_tokens", pa.int64()),
    ]
)
"""The published columns, so that the file can be a recipe's data; `where` is the row the prompt came from."""


def generate(
    recipe: AnyRecipe,
    folder: str | Path,
    *,
    samples: int = 1,
    keep_correct: bool = False,
    resume: bool = False,
    display: Display | None = None,
) -> Path:
    """Every prompt of `data` answered `samples` times by its own teacher, in its view; returns the Parquet file.

    Temperature, slots, limits and seed are the recipe's. Teachers are loaded one after another. With `keep_correct`
    only responses that their verifier accepts are written. What is finished is kept in parts, and `resume` goes on from
    there; the file is the same as without an interruption. Raises BadInput when the recipe has no teachers or one is
    behind a server, when the folder holds something else, or when a row that is to be judged has no verifier.
    """
    display, folder = display or Display(), Path(folder)
    if not isinstance(recipe, OpdRecipe):
        raise BadInput(
            f"method {recipe.method} has no teachers to generate from; give a recipe of method opd"
        )
    if samples < 1:
        raise BadInput(f"samples is {samples}; at least 1 response to each prompt is needed")
    if remote := [name for name, teacher in recipe.teachers.items() if teacher.server is not None]:
        raise BadInput(
            f"teacher {remote[0]} is behind a server, which only scores; take out its `server` to generate"
        )
    data = _prompts(recipe, _checked_tokenizer(recipe), keep_correct)
    _open(folder, {"recipe": resolved_yaml(recipe), "samples": samples, "keep_correct": keep_correct}, resume)
    if (folder / RESPONSES).exists():
        display.say(f"finished before: {folder / RESPONSES}")
        return folder / RESPONSES
    jobs = [_Job(recipe, name, data, folder / PARTS, samples, keep_correct) for name in recipe.teachers]
    with display.run(
        sum(len(job.parts) for job in jobs), sum(part.done for job in jobs for part in job.parts)
    ):
        for job in jobs:
            job.run(display)
    _join(folder, [part.path for job in jobs for part in job.parts])
    seen = ["extra_info", "reward", "finished", "response_tokens"]
    rows = pq.read_table(folder / RESPONSES, columns=seen).to_pylist()
    for job in jobs:
        display.say(_summary(job, [r for r in rows if r["extra_info"]["opd_teacher"] == job.name]))
    display.say(f"written: {folder / RESPONSES}")
    return folder / RESPONSES


def _checked_tokenizer(recipe: OpdRecipe) -> PreTrainedTokenizerBase:
    """The student's; every teacher is there, has the same vocabulary, and can be prompted in its view."""
    tokenizers = {"student": load_tokenizer(recipe.student, "student")}
    for name, teacher in recipe.teachers.items():
        role = f"teacher {name}"
        tokenizers[role] = load_tokenizer(teacher, role)
        views.check_view(recipe.teacher_view(name), tokenizers[role], role)
    views.check_same_vocabulary(tokenizers)
    return tokenizers["student"]


def _prompts(recipe: OpdRecipe, tokenizer: PreTrainedTokenizerBase, keep_correct: bool) -> PromptSet:
    """The prompts that training would take, in the student's view."""
    routes = (*recipe.teachers, *recipe.reward_routes)
    data = prompt_set(
        recipe.data,
        tokenizer,
        "student",
        recipe.student.view,
        routes=routes,
        limit=recipe.data.max_prompt_tokens,
        overlong=recipe.data.overlong,
    )
    check_sandbox(data.prompts, allow_unsandboxed=recipe.train.allow_unsandboxed)
    unjudged = [p.where for p in data.prompts if p.verifier == "none"]
    if keep_correct and unjudged:
        raise BadInput(
            f"{unjudged[0]} and {len(unjudged) - 1} more rows have no verifier to tell which responses are correct; "
            "set data.verifier, or keep all"
        )
    return data


@dataclass(frozen=True)
class _Part:
    """Some prompts of one teacher, and the file with its responses."""

    path: Path
    prompts: PromptSet

    @property
    def done(self) -> bool:
        return self.path.exists()


class _Job:
    """One teacher's prompts."""

    def __init__(
        self, recipe: OpdRecipe, name: str, data: PromptSet, folder: Path, samples: int, keep_correct: bool
    ) -> None:
        self.recipe, self.name, self.samples, self.keep_correct = recipe, name, samples, keep_correct
        rows = [i for i, prompt in enumerate(data.prompts) if prompt.route == name]
        size = max(1, SLOTS_PER_PART * recipe.sampler.slots // samples)
        self.parts = [
            _Part(folder / f"{file_name(name)}-{start:09d}.parquet", data.part(rows[start : start + size]))
            for start in range(0, len(rows), size)
        ]

    def run(self, display: Display) -> None:
        """Answers what is not answered yet."""
        missing = [part for part in self.parts if not part.done]
        if not missing:
            return
        recipe, role = self.recipe, f"teacher {self.name}"
        spec, limit = recipe.teachers[self.name], recipe.data.max_response_tokens
        model = describe(spec, role)
        prompts = [self._seen(part.prompts, model) for part in missing]
        longest = max(len(ids) for seen in prompts for ids in seen.ids) + limit
        seed = recipe.train.seed
        before = len(self.parts) - len(missing)
        with answering(
            spec, role, recipe.sampler, longest=longest, machine=device_of(recipe), seed=seed
        ) as sampler:
            for number, (part, seen) in enumerate(zip(missing, prompts, strict=True), before + 1):
                with display.phase(f"{role}, {number}/{len(self.parts)}", len(seen) * self.samples) as bar:
                    rollouts = sample_rollouts(
                        sampler,
                        model.tokenizer,
                        seen,
                        recipe.sampler,
                        samples=self.samples,
                        max_response_tokens=limit,
                        stream=(seed, GENERATION),
                        progress=bar.sampled,
                    )
                    grade(rollouts)
                self._keep(part, rollouts)
                display.advance()

    def _keep(self, part: _Part, rollouts: list[Rollout]) -> None:
        kept = [r for r in rollouts if r.reward == 1 or not self.keep_correct]
        with atomic_file(part.path) as temporary:
            table = pa.Table.from_pylist([_row(r) for r in kept], SCHEMA)
            pq.write_table(table, temporary, write_page_checksum=True)

    def _seen(self, prompts: PromptSet, model: Description) -> PromptSet:
        """As the teacher sees them."""
        view = self.recipe.teacher_view(self.name)
        if view != self.recipe.student.view:
            prompts = replace(prompts, ids=views.render(view, prompts.prompts, model.tokenizer))
        check_context(model, prompts.ids, self.recipe.data.max_response_tokens)
        return prompts


def _row(rollout: Rollout) -> dict[str, Any]:
    prompt = rollout.prompt
    return {
        "prompt": [dict(message) for message in prompt.messages],
        "response": rollout.text,
        "data_source": prompt.data_source,
        "reward_model": {"ground_truth": prompt.ground_truth},
        "extra_info": {"opd_teacher": prompt.route, "sample": rollout.sample, "where": prompt.where},
        "reward": rollout.reward,
        "finished": rollout.finished,
        "response_tokens": len(rollout.response_ids),
    }


def _open(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Makes the folder, or takes up one with the same settings."""
    text, path = json.dumps(settings, indent=1) + "\n", folder / SETTINGS
    if path.exists():
        if not resume:
            raise BadInput(
                f"{folder} holds responses already; go on with them by --resume, or give a new folder"
            )
        if path.read_bytes() != text.encode():
            raise BadInput(
                f"{folder} was begun with another recipe or other options ({path}); give a new folder"
            )
    elif folder.exists() and not all(is_temporary(entry.name) for entry in folder.iterdir()):
        raise BadInput(f"{folder} exists and holds something else; give a new folder")
    else:
        atomic_write(path, text)  # first, as it is what tells this folder from others
    sweep(folder)
    parts = folder / PARTS
    if not (folder / RESPONSES).exists():
        with writing(parts):
            make_folder(parts)
        sweep(parts)
    elif parts.exists():
        discard(parts)


def _join(folder: Path, parts: Sequence[Path]) -> None:
    """One file of all parts, in order; then the parts go."""
    with atomic_file(folder / RESPONSES) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for part in parts:
            try:
                writer.write_table(pq.read_table(part, schema=SCHEMA, page_checksum_verification=True))
            except (pa.ArrowException, ValueError) as error:
                raise RunFailed(
                    f"{part} is damaged: {error}; remove it and go on by --resume, which generates it anew"
                ) from error
    discard(folder / PARTS)


def _summary(job: _Job, rows: Sequence[dict[str, Any]]) -> str:
    """What came of one teacher's prompts."""
    asked = sum(len(part.prompts) for part in job.parts) * job.samples
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    right = f", {sum(rewards) / asked:.1%} correct" if len(rewards) == len(rows) and rewards else ""
    kept = f", {len(rows)} kept" if job.keep_correct else ""
    tokens = sum(row["response_tokens"] for row in rows) / max(1, len(rows))
    cut = sum(not row["finished"] for row in rows)
    return f"teacher {job.name}: {asked} responses{right}{kept}; {tokens:.1f} tokens on average, {cut} cut at the limit"
