"""The crash campaign: `make chaos`. Prints figures, keeps them as JSON, and goes on where it was stopped.

One line of `trials.jsonl` is one trial: a run killed one or more times and resumed each time, or a run with one
spoilt call, resumed. Any difference from the undisturbed run, any leftover, any unclear message stops the campaign.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos.cases import Case, make_cases
from chaos.faults import FAULTS, Call, build_layer, spoil, watch
from chaos.kills import kill_at_moments, kill_in_calls
from chaos.order import faults
from forks import Forks

KILLS = {"opd": 36, "grpo": 36, "sft": 36, "generate": 36, "eval": 36, "merge": 24, "report": 12}
TIMES = 4
"""How many of a command's kills one run may get."""
REDONE = ("samples.jsonl", "verdicts.jsonl")
"""Answers and verdicts of an evaluation under way: a power loss may take the last, and they come again the same."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/chaos"), help="folder to work in")
    parser.add_argument("--to", type=Path, default=Path("experiments/reliability/crashes.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every-call", action="store_true", help="spoil all calls, not one of each kind")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    work = options.work.resolve()
    forks = Forks(build_layer(work))
    try:
        campaign = Campaign(forks, work, options.seed)
        watched = [campaign.watch(case) for case in make_cases(work)]
        for one in watched:
            campaign.kill(one, KILLS[one.case.name])
        for one in watched:
            campaign.spoil(one, options.every_call)
    finally:
        forks.close()
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(json.dumps(campaign.figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(campaign.figures, indent=1))


@dataclass(frozen=True)
class Watched:
    """A case, what it gives undisturbed, the calls it makes and the seconds it takes for that."""

    case: Case
    whole: dict[str, Any]
    calls: list[Call]
    seconds: float


class Campaign:
    """Trials of all cases, and what came of them."""

    def __init__(self, forks: Forks, work: Path, seed: int) -> None:
        self.forks, self.work, self.seed = forks, work, seed
        self.figures: dict[str, Any] = {"seed": seed}
        self._log = work / "trials.jsonl"
        known = self._log.read_text(encoding="utf-8").splitlines() if self._log.exists() else []
        self._known = {row["trial"]: row["came"] for row in map(json.loads, known)}

    def watch(self, case: Case) -> Watched:
        """An undisturbed run, whose writes are in order."""
        taken = []
        for _ in range(2):
            started = time.perf_counter()
            whole, calls = watch(case, self.forks, self.work / "whole" / case.name)
            taken.append(time.perf_counter() - started)
        seconds = min(taken)
        assert (wrong := faults(calls, REDONE if case.name == "eval" else ())) == [], wrong
        renames = sum(call.name == "rename" for call in calls)
        self.figures[case.name] = {
            "seconds": round(seconds, 1),
            "calls": len(calls),
            "renames_in_order": renames,
        }
        return Watched(case, whole, calls, seconds)

    def kill(self, watched: Watched, kills: int) -> None:
        """So many kills, by turns at random moments and in random calls."""
        case, killed, number = watched.case, Counter[str](), 0
        trial = self.work / case.name / "killed"
        while killed.total() < kills:
            shared = (
                case,
                self.forks,
                trial,
                watched.whole,
                random.Random(f"{self.seed} {case.name} {number}"),
            )
            if number % 2:
                size = len(watched.calls)
                found = self._once(
                    f"{case.name} calls {number}", lambda s=shared, n=size: kill_in_calls(*s, n, TIMES)
                )
                killed["in a call"] += found
            else:
                time_ = watched.seconds
                found = self._once(
                    f"{case.name} moments {number}", lambda s=shared, t=time_: kill_at_moments(*s, t, TIMES)
                )
                killed["at a moment"] += found
            number += 1
        self.figures[case.name]["kills"] = dict(killed)

    def spoil(self, watched: Watched, every_call: bool) -> None:
        """One call of each kind, or every call, the faults taking turns."""
        case, ended, turns = watched.case, Counter[str](), Counter[str]()
        trial = self.work / case.name / "spoilt"
        chosen = watched.calls if every_call else one_of_each(watched.calls)
        for number, call in enumerate(chosen):
            kinds = FAULTS.get(call.name, ("EIO",))
            fault = kinds[turns[call.name] % len(kinds)]
            turns[call.name] += 1
            name = f"{case.name} {number} of {len(chosen)} {call.name} {fault}"
            how = self._once(
                name, lambda c=call, f=fault: spoil(case, self.forks, trial, watched.whole, c.number, f)
            )
            ended[f"{fault}: {how}"] += 1
        self.figures[case.name] |= {"spoilt": dict(sorted(ended.items()))}

    def _once(self, name: str, trial: Callable[[], Any]) -> Any:
        if name not in self._known:
            self._known[name] = trial()
            with self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"trial": name, "came": self._known[name]}) + "\n")
            print(name, self._known[name], flush=True)
        return self._known[name]


def one_of_each(calls: list[Call]) -> list[Call]:
    """The first of the calls that differ only by numbers in paths: every place that writes, once."""
    found: dict[tuple[str, ...], Call] = {}
    for call in calls:
        temporary = re.sub(r"/\.tmp\w{6}$", "/.tmp", call.path)
        found.setdefault(
            (call.name, re.sub(r"\d+", "0", temporary), call.other if call.name == "open" else ""), call
        )
    return list(found.values())


if __name__ == "__main__":
    main()
