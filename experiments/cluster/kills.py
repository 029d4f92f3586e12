"""At least twenty kills at random moments of one run on two nodes: is anything lost?

`python experiments/cluster/kills.py` first runs the recipe undisturbed, then again while engines, scorers, ranks, the
driver and a whole node are killed or frozen, and compares the two. It prints a log, which is in `kills.log`.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from hosts import PORT, Host, two_nodes, wait_for_nodes
from processes import Run, kill

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "runs" / "kills"
STEPS, KILLS, CORES = 75, 22, 3
RECIPE = [
    str(ROOT / "recipes" / "quickstart.yaml"),
    f"train.steps={STEPS}",
    "train.prompts_per_step=64",
    "validation=null",
    "checkpoint.every=1",
    f"tracking.folder={RUNS}",
    "cluster.learner_ranks=2",
    "cluster.sampler_replicas=2",
    "cluster.heartbeat=20",
    "cluster.max_restarts=100",
]
VICTIMS = {
    "sampler killed": ("ray::SamplingEngine", signal.SIGKILL),
    "sampler frozen": ("ray::SamplingEngine", signal.SIGSTOP),
    "scorer killed": ("ray::TeacherEngine", signal.SIGKILL),
    "scorer frozen": ("ray::TeacherEngine", signal.SIGSTOP),
    "learner rank killed": ("ray::LearnerRank", signal.SIGKILL),
    "learner rank frozen": ("ray::LearnerRank", signal.SIGSTOP),
    "driver killed": ("gopd.cli", signal.SIGKILL),
    "node killed": ("", signal.SIGKILL),
}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


def steps_done(name: str) -> int:
    path = RUNS / name / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def strike(kind: str, run: Run, head: Host, other: Host, random_: random.Random) -> bool:
    """Kills or freezes one process, or a node, which comes back; false where there is none of the kind just now."""
    title, number = VICTIMS[kind]
    if kind == "node killed":
        other.end()
        time.sleep(random_.uniform(0, 5))
        other.start_ray(CORES, head)
        return True
    found = [run.driver] if kind == "driver killed" else run.processes(title)
    pids = [pid for pid in found if pid is not None]
    if pids:
        kill(random_.choice(pids), number)
    return bool(pids)


def disturbed(head: Host, other: Host, mark: str) -> int:
    """The run with all kills; returns how many there were."""
    random_ = random.Random(0)
    output = RUNS / "disturbed.txt"
    options = [*RECIPE, "tracking.name=disturbed", "--cluster", f"{head.address}:{PORT}"]
    kinds: list[str] = []
    struck = 0
    run = Run(output, *options, prefix=head.prefix, mark=mark)
    while run.process.poll() is None:
        time.sleep(random_.uniform(2, 14))
        if not kinds:
            kinds = random_.sample(list(VICTIMS), len(VICTIMS))
        if struck < KILLS and run.process.poll() is None:
            kind = kinds.pop()
            if strike(kind, run, head, other, random_):
                struck += 1
                say(f"{struck:3}  {kind}, after step {steps_done('disturbed')}")
    said = run.said()
    assert run.process.returncode == 0, said
    say(f"finished: {said.count('starting again from the last checkpoint')} restarts after a lost actor, ")
    say(
        f"          {said.count('the driver was killed')} of the driver, {said.count('takes its place')} replacements"
    )
    return struck


def digest(name: str) -> str:
    weights = RUNS / name / "student" / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()[:16]


def leftovers(name: str) -> list[str]:
    return [str(p) for p in (RUNS / name).rglob("*") if p.name.endswith((".tmp", ".old"))]


def main() -> None:
    shutil.rmtree(RUNS, ignore_errors=True)
    RUNS.mkdir(parents=True)
    mark = f"kills-{random.SystemRandom().randrange(2**48):x}"
    with two_nodes(CORES, mark) as (head, other):
        options = [*RECIPE, "tracking.name=undisturbed", "--cluster", f"{head.address}:{PORT}"]
        started = time.perf_counter()
        run = Run(RUNS / "undisturbed.txt", *options, prefix=head.prefix, mark=mark)
        assert run.process.wait() == 0, run.said()
        say(
            f"undisturbed: {STEPS} steps in {time.perf_counter() - started:.0f} s, weights {digest('undisturbed')}"
        )
        started = time.perf_counter()
        struck = disturbed(head, other, mark)
        say(
            f"disturbed: {struck} kills, {time.perf_counter() - started:.0f} s, weights {digest('disturbed')}"
        )
        wait_for_nodes(head, 2)
        time.sleep(5)
        left = [title for title, _ in VICTIMS.values() if title and run.processes(title)]
        lines = steps_done("disturbed")
    say(
        f"steps in metrics.jsonl: {lines}; temporary files left: {leftovers('disturbed')}; actors left: {left}"
    )
    same = digest("undisturbed") == digest("disturbed")
    say("the weights are the same to the bit" if same else "THE WEIGHTS DIFFER")
    sys.exit(not (same and struck >= KILLS and lines == STEPS and not left and not leftovers("disturbed")))


if __name__ == "__main__":
    main()
