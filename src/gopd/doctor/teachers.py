"""Is there anything in the teachers that the reference and the student do not have?"""

from __future__ import annotations

from gopd.doctor.contest import problems_of
from gopd.doctor.evidence import Contest, Evidence
from gopd.doctor.finding import Finding, Verdict, not_measured, together
from gopd.recipe import OpdRecipe


def teachers_are_better(evidence: Evidence) -> Finding:
    """Accuracy on validation problems against the reference, and the student where that is another model, paired.

    The 95% interval of the difference decides: above zero is fine, below is a stop, otherwise nothing is shown.
    """
    check, recipe = "teachers", evidence.recipe
    if not isinstance(recipe, OpdRecipe):
        return not_measured(check, f"method {recipe.method} has no teacher")
    return together(check, {name: _of_teacher(evidence, recipe, name) for name in recipe.teachers})


def _of_teacher(evidence: Evidence, recipe: OpdRecipe, teacher: str) -> Finding:
    check, limit = "teachers", evidence.request.problems
    found = [contest for contest in evidence.contests if contest.teacher == teacher]
    if found:
        return together(check, {f"{c.domain}, against the {c.against}": _judged(c) for c in found})
    if recipe.teachers[teacher].server is not None:
        return not_measured(check, "behind a server, which scores and does not answer")
    if limit == 0:
        return not_measured(check, "left out by --problems 0")
    if recipe.validation is None:
        return not_measured(check, "the recipe has no validation section; give one with held-out problems")
    assert not len(problems_of(evidence.task, teacher, limit))
    return not_measured(check, "no validation row with a verifier goes to this teacher")


def _judged(contest: Contest) -> Finding:
    difference = contest.difference
    figures = {
        "problems": contest.problems,
        "teacher": contest.teacher_accuracy,
        contest.against: contest.other_accuracy,
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
    }
    measured = (
        f"{contest.teacher_accuracy:.0%} and {contest.other_accuracy:.0%} of {contest.problems} problems: "
        f"{100 * difference.mean:+.1f} points [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}]"
    )
    verdict: Verdict = "fine"
    mend = ""
    if difference.high < 0:
        verdict = "stop"
        mend = f"the teacher is worse than the {contest.against}: are they swapped? is its view the one it was made with?"
    elif difference.low <= 0:
        verdict = "warning"
        mend = "no difference is shown: look at more problems (--problems), or for a better teacher"
    return Finding("teachers", verdict, measured, mend, figures=figures)
