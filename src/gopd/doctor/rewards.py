"""Do rewards say anything, and do verifiers know right from wrong?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from gopd.data import reach
from gopd.doctor.evidence import Evidence
from gopd.doctor.finding import Finding, Verdict, unmeasured
from gopd.recipe import SampledRecipe
from gopd.sections import SourceSection
from gopd.types import Prompt, Rollout
from gopd.verify import grade_all
from gopd.verify.math import last_boxed

UNIFORM = 0.9
"""Share of groups with equal rewards that is warned of: so much of what is sampled teaches nothing. A choice; measured:
0.03 for the builtin base on arithmetic with 8 samples."""
NOTHING_DONE = "```python\npass\n```"
"""A program that must not pass."""
SHOWN = 3
"""Rows that one message names."""


def rewards_differ(evidence: Evidence) -> Finding:
    """Groups of responses to one prompt whose rewards are all equal; from them nothing is learned."""
    check, recipe = "rewards", evidence.recipe
    if not isinstance(recipe, SampledRecipe):
        return unmeasured(check, f"method {recipe.method} learns from demonstrations")
    groups: dict[int, list[Rollout]] = defaultdict(list)
    for rollout in evidence.rollouts:
        if rollout.reward is not None and recipe.learns_from_reward(rollout.prompt.route):
            groups[rollout.prompt.index].append(rollout)
    if not groups:
        return unmeasured(check, "the recipe learns from teachers alone")
    rewards = [[r.reward for r in group] for group in groups.values()]
    none = sum(set(group) == {0.0} for group in rewards) / len(rewards)
    every = sum(set(group) == {1.0} for group in rewards) / len(rewards)
    uniform = sum(len(set(group)) == 1 for group in rewards) / len(rewards)
    mean = sum(r or 0.0 for group in rewards for r in group) / sum(map(len, rewards))
    measured = (
        f"mean reward {mean:.2f}; {uniform:.0%} of {len(groups)} groups of {len(rewards[0])} have equal rewards "
        f"({none:.0%} all wrong, {every:.0%} all right)"
    )
    figures = {"mean": mean, "groups": len(groups), "uniform": uniform, "all_wrong": none, "all_right": every}
    mend = "take rows that the student solves sometimes (easier ones where all are wrong), sample more responses to "
    mend += "each prompt, or start from a student that was taught by SFT or distillation"
    if uniform == 1:
        return Finding(check, "stop", measured, mend, figures=figures)
    if uniform > UNIFORM:
        return Finding(check, "warning", measured, mend, figures=figures)
    return Finding(check, "fine", measured, figures=figures)


def verifiers_judge(evidence: Evidence) -> Finding:
    """Whether gold answers and reference solutions are graded right, and programs that do nothing wrong.

    Of the sampled rows, and as many of the validation rows; a row's reference solution is its `columns.response`.
    """
    check, recipe, validation = "verifiers", evidence.recipe, evidence.task.validation
    sources: list[tuple[SourceSection, Sequence[Prompt]]] = [(recipe.data, evidence.prompts.prompts)]
    if validation is not None and recipe.validation is not None:
        sources.append((recipe.validation, validation.prompts[: len(evidence.prompts)]))
    judged = [
        (p, solution(p, source)) for source, prompts in sources for p in prompts if p.verifier != "none"
    ]
    if not judged:
        return unmeasured(check, "no row has a verifier")
    solved = [(p, text) for p, text in judged if text is not None]
    gold = _graded([(p, boxed(p)) for p, _ in judged if p.verifier == "math"])
    nothing = _graded([(p, NOTHING_DONE) for p, _ in judged if p.verifier == "code"])
    solutions = _graded(solved)
    counts = {
        "gold answers are graded right": gold,
        "programs that do nothing pass": nothing,
        "reference solutions are graded right": solutions,
    }
    said = [
        f"{sum(right for _, right in rows)} of {len(rows)} {name}" for name, rows in counts.items() if rows
    ]
    figures = {name: [sum(right for _, right in rows), len(rows)] for name, rows in counts.items()}
    if not solved:
        said.append("rows name no reference solution (columns.response)")
    measured = "; ".join(said)
    wrong = [p.where for p, right in gold if not right] + [p.where for p, right in nothing if right]
    if wrong:
        mend = f"mend the ground truth of {_places(wrong)}, or leave the rows out"
        verdict: Verdict = "stop" if len(wrong) > len(judged) / 2 else "warning"
        return Finding(check, verdict, measured, mend, figures=figures)
    if solved and not any(right for _, right in solutions):
        mend = "columns.response names texts without an answer that the verifier takes; mend them if they are solutions"
        return Finding(check, "warning", measured, mend, figures=figures)
    return Finding(check, "fine", measured, figures=figures)


def _graded(answers: Sequence[tuple[Prompt, str]]) -> list[tuple[Prompt, bool]]:
    rewards = grade_all([(p.verifier, p.ground_truth, text) for p, text in answers])
    return [(p, reward == 1) for (p, _), reward in zip(answers, rewards, strict=True)]


def solution(prompt: Prompt, source: SourceSection) -> str | None:
    """The text in a row's response column, which only SFT learns from."""
    value = reach(prompt.fields, source.columns.response)
    return value if isinstance(value, str) else None


def boxed(prompt: Prompt) -> str:
    """A row's gold answer as a response would give it."""
    gold = prompt.ground_truth or ""
    box = last_boxed(gold)
    return f"\\boxed{{{gold if box is None else box}}}"


def _places(rows: Sequence[str]) -> str:
    more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    return ", ".join(rows[:SHOWN]) + more
