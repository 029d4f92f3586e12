from __future__ import annotations

from itertools import combinations

import pytest

from gopd.estimates import estimate, majority, pass_at_k, proportion


@pytest.mark.parametrize("samples", [1, 4, 7])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(samples: int) -> None:
    for right in range(samples + 1):
        outcomes = [True] * right + [False] * (samples - right)
        for k in range(1, samples + 1):
            subsets = list(combinations(outcomes, k))
            assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_1_is_the_average_and_large_numbers_stay_exact() -> None:
    assert pass_at_k(32, 8, 1) == 0.25
    assert pass_at_k(2000, 1, 1000) == 0.5


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([], 0.0),
        ([(0, True)], 1.0),
        ([(1, False), (0, True), (0, True)], 1.0),
        ([(0, True), (1, False), (1, False)], 0.0),
        ([(0, True), (1, False)], 0.5),
        ([(0, True), (1, False), (2, False)], 1 / 3),
        ([(1, False), (2, False), (0, True), (0, True), (1, False)], 0.5),
    ],
)
def test_majority(votes: list[tuple[int, bool]], expected: float) -> None:
    assert majority(votes) == pytest.approx(expected)


@pytest.mark.parametrize("problems", [1, 30, 200])
def test_no_right_answer_at_all_is_not_certainty(problems: int) -> None:
    """At the upper end of the interval no right one among so many has a chance of 2.5%."""
    none, all_right = proportion([0.0] * problems), proportion([1.0] * problems)
    assert (none.mean, none.low) == (0, 0)
    assert (1 - none.high) ** problems == pytest.approx(0.025)
    assert (all_right.mean, all_right.high) == (1, 1)
    assert all_right.low == pytest.approx(1 - none.high)
    assert proportion([0.0, 0.5]) == estimate([0.0, 0.5])


def test_thirty_problems_say_little() -> None:
    """Half of 30 problems right: the interval is about 1.96 · sqrt(0.25 / 30) = 0.18 wide on each side."""
    found = estimate([1.0] * 15 + [0.0] * 15)
    assert found.mean == 0.5
    assert found.low == pytest.approx(0.32, abs=0.03)
    assert found.high == pytest.approx(0.68, abs=0.03)
