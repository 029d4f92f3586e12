"""The miniature's statistics against direct computation, and the whole of it in a few steps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from gopd.rows import resolve
from gopd.types import Prompt, Rollout

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments" / "miniature"
sys.path.insert(0, str(FOLDER))

from cells import CELLS, Size  # noqa: E402
from claims import CLAIMS, Claim  # noqa: E402
from intervals import Interval, Results, interval  # noqa: E402
from measure import compared, load  # noqa: E402


def entry(right: str, **figures: float) -> str:
    return json.dumps({"domains": {"d": {"right": right, **figures}}})


@pytest.fixture
def results(tmp_path: Path) -> Results:
    for cell, rows in {"one/a": ("1110", "1100"), "b": ("1000", "0000")}.items():
        for seed, right in enumerate(rows):
            path = tmp_path / cell / f"{seed}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(entry(right, tokens=10.0 + seed))
    return Results(tmp_path, [0, 1])


def test_means_and_gains_are_those_of_the_digits(results: Results) -> None:
    assert results.accuracy("one/a", "d").mean == 5 / 8
    assert results.gain("one/a", "b", "d").mean == 4 / 8
    assert results.figure("b", "d", "tokens").mean == 10.5
    assert "b" in results and "c" not in results


def test_intervals_cover_as_often_as_they_say() -> None:
    """Seeds and problems both vary; the truth is 0. Few seeds make it a little less than 95%."""
    generator = np.random.default_rng(3)
    hits, trials = 0, 150
    for _ in range(trials):
        values = (
            generator.normal(size=(8, 1)) + generator.normal(size=(1, 40)) + generator.normal(size=(8, 40))
        )
        found = interval([values])
        hits += found.low <= 0 <= found.high
    assert 0.85 < hits / trials <= 1


def test_an_interval_has_the_width_that_both_sources_give() -> None:
    """Without noise of their own, seeds give var/S and problems var/P, which add up."""
    seeds, problems = np.linspace(-1, 1, 12), np.linspace(-2, 2, 50)
    found = interval([seeds[:, None] + problems[None, :]])
    deviation = np.sqrt(seeds.var() / 12 + problems.var() / 50)
    assert found.mean == pytest.approx(0, abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * deviation, rel=0.06)


def test_domains_count_the_same_whatever_their_size() -> None:
    assert interval([np.ones((2, 5)), np.zeros((2, 50))]).mean == 0.5


@pytest.mark.parametrize(
    ("equal", "bounds", "verdict"),
    [
        (False, (0.01, 0.03), "holds"),
        (False, (-0.01, 0.03), "undecided"),
        (False, (-0.03, -0.01), "does not hold"),
        (True, (-0.01, 0.015), "holds"),
        (True, (-0.01, 0.03), "undecided"),
        (True, (0.03, 0.05), "does not hold"),
        (True, (-0.05, -0.03), "does not hold"),
    ],
)
def test_verdicts(equal: bool, bounds: tuple[float, float], verdict: str) -> None:
    low, high = bounds
    claim = Claim("", "", lambda results: Interval(0, low, high), equal)
    assert claim.verdict(Interval((low + high) / 2, low, high)) == verdict


def test_divergences_are_those_of_transformers_in_float64(tmp_path: Path) -> None:
    """Entropy, KL to teacher and base, and ℓ_T − ℓ_R, per token, against whole-vocabulary sums."""
    models = [load(f"builtin:{name}") for name in ("code", "math", "base")]
    plain = [
        AutoModelForCausalLM.from_pretrained(resolve(f"builtin:{name}"), dtype=torch.float64)
        for name in ("code", "math", "base")
    ]
    prompt = models[0].tokenizer.encode("What is 3 + 4?")
    rollouts = []
    for number, text in enumerate(("3+4=7. \\boxed{7}", "no")):
        row = Prompt(number, "", (), "", "none", None, None, None, {})
        rollouts.append(Rollout(row, 0, prompt, models[0].tokenizer.encode(text), None, True, text))
    expected: list[list[torch.Tensor]] = [[], [], [], []]
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
        own, teacher, base = (m(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1).detach() for m in plain)
        sampled = torch.tensor(rollout.response_ids).unsqueeze(-1)
        expected[0].append(-(own.exp() * own).sum(-1))
        expected[1].append((own.exp() * (own - teacher)).sum(-1))
        expected[2].append((own.exp() * (own - base)).sum(-1))
        expected[3].append((teacher - base).gather(-1, sampled).squeeze(-1))
    for found, wanted in zip(compared(*models, rollouts), expected, strict=True):
        torch.testing.assert_close(
            found.double().sort().values, torch.cat(wanted).sort().values, rtol=1e-4, atol=1e-5
        )


def test_the_report_gives_the_verdicts_of_the_results_kept_beside_it() -> None:
    kept = Results(FOLDER / "results", range(Size().seeds))
    assert [cell.name for cell in CELLS if cell.name not in kept] == []
    report = (FOLDER / "README.md").read_text(encoding="utf-8")
    for claim in CLAIMS:
        (line,) = [
            line for line in report.splitlines() if line.startswith(f"| {claim.source} | {claim.text} |")
        ]
        assert line.endswith(f"| {claim.verdict(claim.effect(kept))} |")


def run(folder: Path, *cells: str) -> str:
    command = [sys.executable, FOLDER / "run.py", "--quick", folder, *cells]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.nightly
def test_the_whole_miniature_in_a_few_steps(tmp_path: Path) -> None:
    first = "single/math/1.25"
    run(tmp_path, first)
    kept = {p: p.read_bytes() for p in (tmp_path / "results").glob("**/*.json")}
    assert len(kept) == 2
    said = run(tmp_path)
    assert "2 of " in said
    assert {path: path.read_bytes() for path in kept} == kept
    report = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "<!--" not in report
    lines = report.splitlines()
    for claim in CLAIMS:
        (line,) = [line for line in lines if line.startswith(f"| {claim.source} | {claim.text} |")]
        assert line.endswith(("| holds |", "| does not hold |", "| undecided |"))
    for name in ("sweep", "rewards", "methods", "estimators"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    files = sorted((tmp_path / "results" / first).glob("*.json"))
    before = [json.loads(path.read_text()) for path in files]
    assert before[0]["domains"] != before[1]["domains"]
    files[0].unlink()  # lost, and of another size: both are run again
    files[1].write_text(json.dumps(before[1] | {"size": {}, "domains": {}}))
    run(tmp_path, first)
    assert [json.loads(path.read_text())["domains"] for path in files] == [b["domains"] for b in before]
