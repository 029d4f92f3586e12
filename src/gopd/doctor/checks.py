"""What the doctor looks at, in this order; each check is a function of the evidence."""

from __future__ import annotations

from collections.abc import Callable

from gopd.doctor.evidence import Evidence
from gopd.doctor.finding import Finding
from gopd.doctor.resources import run_fits
from gopd.doctor.responses import responses_end, sampler_matches_trainer
from gopd.doctor.rewards import rewards_differ, verifiers_judge
from gopd.doctor.scoring import scores_are_steady, student_is_near, teachers_differ
from gopd.doctor.teachers import teachers_are_better
from gopd.doctor.tokens import models_agree, turns_end, views_end_alike

Check = Callable[[Evidence], Finding]

CHECKS: tuple[Check, ...] = (
    models_agree,
    views_end_alike,
    turns_end,
    responses_end,
    sampler_matches_trainer,
    scores_are_steady,
    teachers_differ,
    student_is_near,
    teachers_are_better,
    rewards_differ,
    verifiers_judge,
    run_fits,
)
