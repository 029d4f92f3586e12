"""Is there anything in the teachers that the reference and the student do not have?"""

from __future__ import annotations

from functools import partial

from gopd.doctor.contest import problems_of
from gopd.doctor.evidence import Contest, Evidence
from gopd.doctor.finding import Finding, Verdict, joined, of_teachers, unmeasured
from gopd.recipe import OpdRecipe


def teachers_are_better(evidence: Evidence) -> Finding:
    """Accuracy on validation problems against the reference, and the student where that is another model, paired.

    The 95% interval of the difference decides: above zero is fine, below is a stop, otherwise nothing is shown.
    """
    return of_teachers("teachers", evidence.recipe, partial(_of_teacher, evidence))


def _of_teacher(evidence: Evidence, recipe: OpdRecipe, teacher: str) -> Finding:
    check, limit = "teachers", evidence.request.problems
    found = [contest for contest in evidence.contests if contest.teacher == teacher]
    if found:
        return joined(check, {f"{c.domain} {c.against}": _judged(c) for c in found})
    if recipe.teachers[teacher].server is not None:
        return unmeasured(check, "behind a server, which scores and does not answer")
    if limit == 0:
        return unmeasured(check, "left out by --problems 0")
    if recipe.validation is None:
        return unmeasured(check, "the recipe has no validation section; give one with held-out problems")
    assert not len(problems_of(evidence.task, teacher, limit))
    return unmeasured(check, "no validation row with a verifier goes to this teacher")


def _judged(contest: Contest) -> Finding:
    difference = contest.difference
    figures = {
        "problems": contest.problems,
        "teacher": contest.teacher_accuracy,
        "other": contest.other_accuracy,
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
    }
    mean, low, high = (100 * value for value in (difference.mean, difference.low, difference.high))
    measured = (
        f"{contest.domain}, {contest.problems} problems: {contest.teacher_accuracy:.0%} against "
        f"{contest.other_accuracy:.0%} of the {contest.against}, {mean:+.1f} points [{low:+.1f}, {high:+.1f}]"
    )
    verdict: Verdict = "fine"
    mend = ""
    if difference.high < 0:
        verdict = "stop"
        mend = f"worse than the {contest.against}: are they swapped? Is the teacher's view the one it was made with?"
    elif difference.low <= 0:
        verdict = "warning"
        mend = "no difference is shown: look at more problems (--problems), or for a better teacher"
    return Finding("teachers", verdict, measured, mend, figures=figures)
