"""The quickstart's recipe on every engine and every shape of cluster: the same result? `README.md` has the table.

`python experiments/cluster/compare.py` runs what `results.json` lacks, one cell after the other, and writes the table.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hosts import PORT, two_nodes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = ROOT / "runs" / "cluster"
RESULTS, PAGE = HERE / "results.json", HERE / "README.md"
MARK = "<!-- table -->"

VLLM = ["sampler.engine=vllm"]
LOCAL = ["--cluster", "local"]
CELLS: Mapping[str, tuple[list[str], list[int]]] = {
    "one process, embedded sampler": ([], [0, 1, 2]),
    "one process, vLLM": (VLLM, [0, 1, 2]),
    "Ray, 2 learner ranks, 2 engines": (
        ["cluster.learner_ranks=2", "cluster.sampler_replicas=2", *LOCAL],
        [0, 1],
    ),
    "2 nodes, 2 learner ranks, 2 engines": (["cluster.learner_ranks=2", "cluster.sampler_replicas=2"], [0]),
    "Ray, staleness 1": (["train.max_staleness=1", *LOCAL], [0, 1]),
    "Ray, staleness 2": (["train.max_staleness=2", *LOCAL], [0, 1]),
    "Ray, staleness 4": (["train.max_staleness=4", *LOCAL], [0, 1]),
    "Ray, vLLM, staleness 1": (["train.max_staleness=1", *VLLM, *LOCAL], [0, 1]),
    "Ray, vLLM, staleness 1, in flight": (
        ["train.max_staleness=1", "sampler.vllm.in_flight_updates=true", *VLLM, *LOCAL],
        [0, 1],
    ),
}
"""By name: changes to the recipe and options, and the seeds to run."""


def main() -> None:
    results: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name, (options, seeds) in CELLS.items():
        for seed in seeds:
            if f"{name}/{seed}" not in results:
                print(name, seed, flush=True)
                results[f"{name}/{seed}"] = run(name, options, seed)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    text = PAGE.read_text(encoding="utf-8")
    before, _, after = text.split(MARK)
    PAGE.write_text(f"{before}{MARK}\n{table(results)}\n{MARK}{after}", encoding="utf-8")


def run(name: str, options: list[str], seed: int) -> dict[str, Any]:
    """One run, and what its last validation says."""
    label = "".join(c if c.isalnum() else "-" for c in f"{name}-{seed}")
    changes = [
        f"train.seed={seed}",
        f"tracking.folder={RUNS}",
        f"tracking.name={label}",
        "train.steps=40",
        "validation.teachers=false",
    ]
    command = [sys.executable, "-m", "gopd.cli", "train", str(ROOT / "recipes" / "quickstart.yaml"), *changes]
    started = time.perf_counter()
    if name.startswith("2 nodes"):
        with two_nodes(3) as (head, _):
            started = time.perf_counter()
            process = head.start(*command, *options, "--cluster", f"{head.address}:{PORT}")
            assert process.wait() == 0
    else:
        subprocess.run([*command, *options], check=True)
    seconds = time.perf_counter() - started
    folder = RUNS / label
    last = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()][-1]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    stale = [entry.get("staleness", 0) for entry in metrics]
    domains = {d: [v["accuracy"], v["low"], v["high"], v["kl_to_target"]] for d, v in last["domains"].items()}
    correction = max(entry.get("correction/max", 1.0) for entry in metrics)
    return {
        "seconds": seconds,
        "domains": domains,
        "staleness": sum(stale) / len(stale),
        "correction": correction,
    }


def table(results: Mapping[str, Any]) -> str:
    """A row per run."""
    domains = sorted(next(iter(results.values()))["domains"])
    head = ["", "seed", *domains, "KL to target", "mean staleness", "largest correction", "seconds"]
    rows = [head, ["---"] * len(head)]
    for name, seed in ((name, seed) for name, (_, seeds) in CELLS.items() for seed in seeds):
        found = results[f"{name}/{seed}"]
        cells = [
            f"{100 * a:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            for a, low, high, _ in map(found["domains"].get, domains)
        ]
        kl = sum(values[3] for values in found["domains"].values()) / len(domains)
        rest = [
            f"{kl:.4f}",
            f"{found['staleness']:.2f}",
            f"{found['correction']:.3f}",
            f"{found['seconds']:.0f}",
        ]
        rows.append([name, str(seed), *cells, *rest])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    main()
