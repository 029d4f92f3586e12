from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
WORKER = """
import os, sys
sys.path.insert(0, sys.argv[1])
from turns import Stage
stage = Stage()
print("noise on standard output")
os.system("echo noise of a child")
def work(number):
    if number < 0:
        raise SystemExit(3)
    return {"double": 2 * number, "name": sys.argv[2]}
stage.serve(work)
"""


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import turns

    return turns


def test_programs_answer_in_turn_whatever_they_print(turns: object) -> None:
    commands = {name: [sys.executable, "-c", WORKER, BENCHMARKS, name] for name in ("a", "b")}
    with turns.players(commands) as team:  # type: ignore[attr-defined]
        for number in range(3):
            for name, player in team.items():
                assert player.turn(number=number) == {"double": 2 * number, "name": name}


def test_a_program_that_ends_is_an_error(turns: object) -> None:
    command = [sys.executable, "-c", WORKER, BENCHMARKS, "a"]
    with (
        turns.players({"a": command}) as team,  # type: ignore[attr-defined]
        pytest.raises(RuntimeError, match="a ended with exit code 3"),
    ):
        team["a"].turn(number=-1)


def test_ratios_are_taken_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import step

    cases = {
        "TRL stable": [{"seconds": 6.0}, {"seconds": 12.0}],
        "gopd full": [{"seconds": 2.0}, {"seconds": 3.0}],
    }
    assert step.ratios(cases) == {"TRL stable / gopd full": {"median": 3.5, "min": 3.0, "max": 4.0}}


@pytest.mark.parametrize(("lengths", "ratio"), [([4, 1, 1], 4 / 4), ([1, 1, 4], 4 / 5), ([2, 2, 2], 1)])
def test_the_best_schedule_counts_steps_of_the_rows_that_are_left(
    turns: object, lengths: list[int], ratio: float
) -> None:
    """Two slots, and every step takes a second whatever the rows; rows of equal lengths need four steps."""
    import report

    cases = {f"batch {n}, equal lengths": {"tokens_per_second": {"gopd": n}} for n in (1, 16, 64)}
    assert report.best_schedule(cases, lengths, slots=2) == pytest.approx(ratio)
