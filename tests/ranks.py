"""Learners of one student in several processes, and what each of them sees: a program for `test_sharding`.

`python ranks.py JOB.json` reads the number of ranks, cases (recipes with routes) and folders, and leaves
`CASE-RANK.pt` in the job's folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from gopd.guard import Bounds
from gopd.learner import NonFinite
from gopd.methods import opd
from gopd.recipe import OpdRecipe
from gopd.recipe_file import parse_recipe
from gopd.sharding import Ranks, whole
from gopd.types import Rollout
from tiny import Bench, make_rollouts


def play(case: dict[str, Any], ranks: Ranks, folder: Path | None = None) -> dict[str, Any]:
    """Two updates and two measurements of one case, as one rank sees them; saved and exported into a folder."""
    recipe = parse_recipe(case["recipe"])
    assert isinstance(recipe, OpdRecipe)
    bench = Bench.of(recipe, ranks=ranks)
    learner, rollouts = bench.learner, make_rollouts(recipe, bench.student, case["routes"])
    for rollout in rollouts:
        generator = torch.Generator().manual_seed(rollout.prompt.index)
        rollout.sampler_logprobs_R = -2 * torch.rand(len(rollout.response_ids), generator=generator)
    if "start" in case:
        learner.load(Path(case["start"]), 1)
    refused = refuse(bench, rollouts) if case.get("guarded") else []
    updates = [bench.update(rollouts, on_policy=case["on_policy"]) for _ in range(2)]
    scores = bench.scorer.score(rollouts, temperature=1.0, keep_hidden=True)
    if folder is not None:
        save(learner, folder, ranks)
    return {
        "refused": refused,
        "loss": [u.loss for u in updates],
        "norm": [u.grad_norm for u in updates],
        "reports": [[None if r is None else r.student_logprobs_R for r in u.reports] for u in updates],
        "weights": {name: whole(p.detach()).clone() for name, p in learner.parameters.items()},
        "moments": {n: whole(learner.optimizer.state[p]["exp_avg"]) for n, p in learner.parameters.items()},
        "logprobs": learner.logprobs(rollouts),
        "kl": learner.kl_to_target(rollouts, scores, 1.0) if opd.needs_vocabulary(recipe.objective) else {},
        "merged": dict(learner.weights()),
    }


def refuse(bench: Bench, rollouts: list[Rollout]) -> list[Any]:
    """What is said of steps that must not be made: out of each bound, and with a row that is spoiled."""
    scores = bench.score(rollouts)
    said: list[Any] = []
    for bounds in (Bounds(loss=-10.0), Bounds(grad_norm=1e-3), Bounds(kl=1e-3)):
        terms = bench.terms(rollouts, scores, True)
        said.append(bench.learner.update(rollouts, scores, terms, bounds=bounds).refused)
    terms = bench.terms(rollouts, scores, True)
    spoiled = terms[4]
    assert spoiled is not None
    spoiled.constant_R[2] = -torch.inf
    try:
        bench.learner.update(rollouts, scores, terms)
    except NonFinite as error:
        said.append((error.rows, str(error)))
    return said


def save(learner: Any, folder: Path, ranks: Ranks) -> None:
    for name in ("checkpoint", "student"):
        if ranks.rank == 0:
            (folder / name).mkdir(parents=True)
    if ranks.mesh is not None:
        dist.barrier()
    learner.save(folder / "checkpoint")
    learner.export(folder / "student")


def _rank(rank: int, job: dict[str, Any]) -> None:
    folder = Path(job["folder"])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=job["ranks"]
    )
    ranks = Ranks.joined(torch.device("cpu"))
    for name, case in job["cases"].items():
        torch.save(play(case, ranks, folder / name if case["keep"] else None), folder / f"{name}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    described = json.loads(Path(sys.argv[1]).read_text())
    mp.spawn(_rank, (described,), described["ranks"])
