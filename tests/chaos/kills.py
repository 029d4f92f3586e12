"""Processes killed by SIGKILL: at moments drawn over an undisturbed run's time, and in the middle of calls."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

from chaos.cases import OUT, Case, assert_ends_as, new_trial, whole_checkpoints
from forks import Forks

KILLED = -signal.SIGKILL


def kill_at_moments(
    case: Case,
    forks: Forks,
    trial: Path,
    whole: dict[str, Any],
    chance: random.Random,
    seconds: float,
    times: int,
) -> int:
    """Kills one run up to `times` times, each after a random part of `seconds`, then lets it end; how many fell."""
    new_trial(trial)
    return _kill(case, forks, trial, whole, times, lambda: chance.uniform(0, seconds))


def kill_in_calls(
    case: Case,
    forks: Forks,
    trial: Path,
    whole: dict[str, Any],
    chance: random.Random,
    calls: int,
    times: int,
) -> int:
    """The same, each kill in the middle of one of the first `calls` calls that change a file."""
    new_trial(trial)
    return _kill(case, forks, trial, whole, times, lambda: chance.randint(1, calls))


def _kill(case: Case, forks: Forks, trial: Path, whole: dict[str, Any], times: int, draw: Any) -> int:
    killed, last = 0, 0
    for _ in range(times):
        words, log = [*case.words(trial), *(case.again if killed else ())], trial / "log"
        when = draw()
        if isinstance(when, float):
            code = forks.kill_after(when, *words, output=log)
        else:
            arm = [str(trial / OUT), str(trial / "calls"), when, "KILL"]
            code = forks.run(*words, output=log, arm=arm)
        assert code in (0, KILLED), f"{case.name}: {log.read_text()}"
        killed += code == KILLED
        steps = whole_checkpoints(trial)
        assert max(steps, default=0) >= last, f"{case.name}: a kill lost the checkpoint of step {last}"
        last = max(steps, default=0)
        if code == 0:
            break
    assert_ends_as(case, forks, trial, whole)
    return killed
