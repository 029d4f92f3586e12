"""Thousands of runs in a row, honest and hostile programs by turns: is anything left behind?

python -m red_team.many 10000 namespaces
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from gopd.sandbox import Isolation
from red_team import escape, persist, read, talk
from red_team.attack import Attack
from red_team.witness import World, children

_HONEST = Attack("honest", "forge", "counts", "print('tried', sum(range(1000)))", prelude=False)
_WARM = 1000


def many(runs: int, isolation: Isolation) -> dict[str, object]:
    """Counts of what this process and the machine hold, before and after so many runs, and runs per second."""
    quick = [
        one for one in (*escape.ATTACKS, *persist.ATTACKS, *read.ATTACKS, *talk.ATTACKS) if one.kind == "run"
    ]
    quick = [one for one in quick if "timeout" not in one.ends]
    with World(isolation) as world, ThreadPoolExecutor(os.cpu_count()) as pool:

        def play(number: int) -> list[str]:
            attack = quick[number // 10 % len(quick)] if number % 10 == 0 else _HONEST
            return world.play(attack)

        wrong = [text for texts in pool.map(play, range(_WARM)) for text in texts]
        world.settle()  # with the pool's threads
        wrong += world.found()
        before, start = _held(world.temporary), time.monotonic()
        for first in range(0, runs, 1000):
            wrong += [
                text for texts in pool.map(play, range(first, min(first + 1000, runs))) for text in texts
            ]
            wrong += world.found()
        seconds = time.monotonic() - start
        after = _held(world.temporary)
    return {
        **{
            "runs": runs,
            "isolation": isolation,
            "seconds": round(seconds, 1),
            "before": before,
            "after": after,
        },
        "wrong": wrong,
    }


def _held(temporary: Path) -> dict[str, int]:
    own = psutil.Process()
    return {
        "processes": len(children()),
        "descriptors": own.num_fds(),
        "threads": threading.active_count(),
        "resident bytes": own.memory_info().rss,
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "temporary files": len(os.listdir(temporary)),
        "sandbox folders": len(list(Path(tempfile.gettempdir()).glob("gopd-sandbox-*"))),
        "shared memory files": len(os.listdir("/dev/shm")),
    }


if __name__ == "__main__":
    print(json.dumps(many(int(sys.argv[1]), sys.argv[2]), indent=1))  # type: ignore[arg-type]
