"""The rollouts of the token inspector: which of the logged ones the page holds, and how they are written into it."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gopd.recipe import OpdRecipe
from gopd.report.curves import Group
from gopd.report.runs import Run, expects_rollouts, number
from gopd.report.text import reading, script_json, shown_vocabulary, visible
from gopd.tracking import ROLLOUT_SCHEMA

MOST_BYTES = 2_200_000
"""Of all rollouts in the page."""
MOST_PROMPT = 4_000
"""Characters of a prompt that are shown."""
NUMBERS = (
    "sampler_logprobs",
    "student_logprobs",
    "teacher_logprobs",
    "reference_logprobs",
    "log_partition",
    "advantages",
    "entropies",
    "kls",
)
"""Columns with a number for every token."""
KEPT = ("row", "where", "sample", "route", "data_source", "reward", "finished")
"""Columns that the page has as they are."""
_TRAINING = "training"


@dataclass(frozen=True)
class Place:
    """Where one rollout is: a row of a file. `model` is who answered, in training the student."""

    run: int
    file: Path
    row: int
    source: str
    model: str
    step: int
    prompt: str
    tokens: int


def rollouts_json(groups: Sequence[Group], steps: Sequence[range] | None) -> dict[str, Any]:
    """Rollouts for the page, within `MOST_BYTES`; `steps` restricts them. Problems are added to the runs'."""
    runs = [run for group in groups for run in group.runs]
    group_numbers = [place for place, group in enumerate(groups) for _ in group.runs]
    logged = [place for number, run in enumerate(runs) for place in _places(number, run)]
    wanted = [place for place in logged if steps is None or any(place.step in span for span in steps)]
    order = _in_order(wanted)
    budget = sum(place.tokens for place in order)
    while True:
        chosen = _within(order, budget)
        page = _page(runs, chosen) | {"logged": len(logged), "groups": group_numbers}
        size = len(script_json(page).encode())
        if size <= MOST_BYTES or len(chosen) == 1:
            return page
        budget = int(min(budget, sum(place.tokens for place in chosen)) * 0.95 * MOST_BYTES / size)


# --- what is there --------------------------------------------------------------------------------------------------


def _places(number: int, run: Run) -> Iterator[Place]:
    files = sorted((run.path / "rollouts").glob("step-*.parquet"))
    if not files and expects_rollouts(run):
        run.problems.append("rollouts/ has no file, though the recipe asks for rollouts")
    held_out = sorted((run.path / "validation").glob("*/step-*.parquet"))
    for file in [*files, *held_out]:
        source = _TRAINING if file.parent.name == "rollouts" else "held-out"
        model = "student" if source == _TRAINING else file.parent.name
        table = _read(run, file, ["step", "prompt", "response_ids"])
        if table is None:
            continue
        lengths = pc.fill_null(pc.list_value_length(table["response_ids"]), 0).to_pylist()
        steps, prompts = pc.fill_null(table["step"], 0), pc.fill_null(table["prompt"], "")
        columns = (steps.to_pylist(), prompts.to_pylist(), lengths)
        for row, (step, prompt, tokens) in enumerate(zip(*columns, strict=True)):
            yield Place(number, file, row, source, model, step, prompt, tokens)


def _read(run: Run, file: Path, columns: Sequence[str]) -> pa.Table | None:
    """Columns of a rollout file, those that an earlier version did not have as null; None when it is damaged."""
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as parquet:
            there = [name for name in columns if name in parquet.schema_arrow.names]
            table = parquet.read(columns=there)
        for name in columns:
            if name not in there:
                table = table.append_column(name, pa.nulls(len(table)))
        return table.select(list(columns)).cast(pa.schema([ROLLOUT_SCHEMA.field(name) for name in columns]))
    except (OSError, pa.ArrowException, ValueError, LookupError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        problem = f"{file.relative_to(run.path)} is damaged and left out: {reason}"
        if problem not in run.problems:
            run.problems.append(problem)
        return None


# --- which are shown ------------------------------------------------------------------------------------------------


def _in_order(places: Sequence[Place]) -> list[Place]:
    """Those first that tell most: some of every step, and prompts that come back in other steps, models and runs."""
    met = Counter(place.prompt for place in places)
    steps: dict[tuple[int, str, str], dict[int, list[Place]]] = defaultdict(lambda: defaultdict(list))
    for place in places:
        steps[place.run, place.source, place.model][place.step].append(place)
    ranked = []
    for stream in steps.values():
        for turn, step in enumerate(_halving(sorted(stream))):
            rows = sorted(stream[step], key=lambda p: (-met[p.prompt], _digest(p.prompt), p.row))
            ranked += [(rank, turn, place) for rank, place in enumerate(rows)]
    return [place for _, _, place in sorted(ranked, key=lambda found: found[:2])]


def _halving(steps: Sequence[int]) -> list[int]:
    """First, last, middle, then the middles of the halves, and so on."""
    order, spans = [steps[0], steps[-1]], [(0, len(steps) - 1)]
    for low, high in spans:  # grows while it is gone through
        middle = (low + high) // 2
        if low < middle < high:
            order.append(steps[middle])
            spans += [(low, middle), (middle, high)]
    return list(dict.fromkeys(order))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _within(places: Sequence[Place], tokens: int) -> list[Place]:
    """The first places that have so many tokens together; at least one."""
    chosen, filled = list[Place](), 0
    for place in places:
        filled += place.tokens
        if filled > tokens and chosen:
            break
        chosen.append(place)
    return chosen


# --- how they are written -------------------------------------------------------------------------------------------


def _page(runs: Sequence[Run], chosen: Sequence[Place]) -> dict[str, Any]:
    """Rollouts by run, step and row; prompts once each; every run's tokens by id."""
    prompts: dict[str, int] = {}
    vocabularies: list[dict[int, str]] = [{} for _ in runs]
    samples: list[list[tuple[list[str], str]]] = [[] for _ in runs]
    rows = []
    for place, row in _rows(runs, chosen):
        ids, tokens = row["response_ids"] or [], row["tokens"] or []
        vocabularies[place.run].update(zip(ids, tokens, strict=False))
        samples[place.run].append((tokens, row["response"] or ""))
        numbers = {name: _packed(row[name]) for name in NUMBERS if row[name]}
        prompt = prompts.setdefault(place.prompt, len(prompts))
        scale = runs[place.run].reward_scale(row["route"])
        where_from = {"run": place.run, "source": place.source, "model": place.model, "step": place.step}
        kept = {name: row[name] for name in KEPT} | {"reward": number(row, "reward")}
        what = {"prompt": prompt, "scale": scale, "ids": ids, "numbers": numbers}
        what["versions"] = _spans(row["versions"] or [])
        rows.append(where_from | kept | what)
    return {
        "runs": [run.name for run in runs],
        "prompts": [_cut(visible(text)) for text in prompts],
        "tokens": [
            shown_vocabulary(vocabulary, reading(found))
            for vocabulary, found in zip(vocabularies, samples, strict=True)
        ],
        "kls": [_kl_label(run) for run in runs],
        "rows": rows,
    }


def _kl_label(run: Run) -> str:
    """What the numbers of the column `kls` are, by the recipe's estimator."""
    if not isinstance(run.recipe, OpdRecipe):
        return "KL to target"
    objective = run.recipe.objective
    if objective.estimator == "topk":
        return "KL to target (lower bound)"
    exact = objective.estimator == "full" or objective.control_variate
    return "KL to target (exact)" if exact else "KL to target (one sample)"


def _rows(runs: Sequence[Run], chosen: Sequence[Place]) -> Iterator[tuple[Place, dict[str, Any]]]:
    by_file: dict[tuple[int, Path], list[Place]] = defaultdict(list)
    for place in chosen:
        by_file[place.run, place.file].append(place)
    for (run, file), places in sorted(by_file.items()):
        places.sort(key=lambda place: place.row)
        table = _read(runs[run], file, ROLLOUT_SCHEMA.names)
        if table is None:
            continue
        yield from zip(places, table.take([place.row for place in places]).to_pylist(), strict=True)


def _spans(versions: Sequence[int]) -> list[tuple[int, int]]:
    """Versions of tokens as (first token, version), one for every change."""
    return [(i, v) for i, v in enumerate(versions) if i == 0 or v != versions[i - 1]]


def _packed(values: Sequence[float | None]) -> str:
    """Numbers as base64 of little-endian float32, so exactly as they were logged; what is not known is NaN."""
    array = np.array([np.nan if value is None else value for value in values], dtype="<f4")
    return base64.b64encode(array.tobytes()).decode()


def _cut(text: str) -> str:
    return text if len(text) <= MOST_PROMPT else f"{text[:MOST_PROMPT]} … ({len(text):,} characters)"
