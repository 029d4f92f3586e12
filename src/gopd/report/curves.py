"""What the page draws: panels of curves, runs of one recipe as one curve with a band over its seeds."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean
from typing import Any

from gopd.report.runs import Run, number

MOST_POINTS = 300
"""Of one curve; with more steps each point stands for several."""
MOST_ROWS = 36_000
"""Points of all curves together, so that they take 1.6 MB at most."""

Points = dict[int, tuple[float, float, float]]
"""(mean, low, high) by step."""


@dataclass(frozen=True)
class Group:
    """Runs whose recipes differ in nothing but the seed and their names."""

    label: str
    runs: Sequence[Run]


@dataclass(frozen=True)
class Panel:
    """One diagram: `series` has a curve for each group that has the figure, by the group's place."""

    title: str
    unit: str
    about: str
    share: bool
    series: Mapping[int, Points]
    dots: bool = False


@dataclass(frozen=True)
class Family:
    """Metrics whose whole name matches a pattern, a panel each: `{}` in the title is the pattern's group."""

    section: str
    pattern: str
    title: str
    unit: str
    about: str = ""
    share: bool = False


@dataclass(frozen=True)
class Measured:
    """A figure of validations with the bounds of its interval; the domain stands for `{}` in the title."""

    key: str
    low: str
    high: str
    title: str
    unit: str
    about: str


LEARNING, HELD_OUT, TEACHERS = "Learning", "Held-out rows", "Teachers and references"
ENGINE, OPTIMIZER, TIME, OTHER = "Sampler against trainer", "Optimisation", "Time and memory", "Other figures"
SECTIONS = (LEARNING, HELD_OUT, TEACHERS, ENGINE, OPTIMIZER, TIME, OTHER)
MEASURED = (
    Measured(
        "accuracy", "low", "high", "Accuracy, {}", "%", "95% interval; of several runs lowest to highest"
    ),
    Measured(
        "kl_to_target",
        "kl_low",
        "kl_high",
        "Exact KL, {}",
        "nats/token",
        "to q_λ (grpo: to R), intervals likewise",
    ),
)
FAMILIES = (
    Family(LEARNING, "kl_to_target", "KL to target", "nats/token", "KL(S ‖ q_λ) at the sampled tokens"),
    Family(LEARNING, "kl_to_reference", "KL to reference", "nats/token", "KL(S ‖ R), k3 estimate"),
    Family(LEARNING, "reward/(.+)", "Reward, {}", "mean", "what the verifier gave, in training"),
    Family(LEARNING, "response_tokens/mean", "Response length", "tokens", "mean of a step's responses"),
    Family(LEARNING, "response_tokens/max", "Longest response", "tokens"),
    Family(LEARNING, "entropy", "Entropy", "nats/token", "of the student's next-token distribution"),
    Family(LEARNING, "truncated", "Truncated", "%", "responses cut at the length limit", share=True),
    Family(
        TEACHERS, "teacher/(.+)/reference_gap", "Teacher − reference, {}", "nats/token", "mean of ℓ_T − ℓ_R"
    ),
    Family(TEACHERS, "teacher/(.+)/advantage_mean", "Advantage, {}", "nats/token", "mean over tokens"),
    Family(
        TEACHERS, "teacher/(.+)/advantage_std", "Spread of advantages, {}", "nats/token", "standard deviation"
    ),
    Family(
        ENGINE, "correction/mean", "Correction weight", "weight", "mean; one run's band: smallest to largest"
    ),
    Family(ENGINE, "sampler_gap/mean", "Sampler gap, mean", "nats/token", "ℓ_train − ℓ_sampler"),
    Family(ENGINE, "sampler_gap/max", "Sampler gap, largest", "nats", "|ℓ_train − ℓ_sampler|"),
    Family(ENGINE, "staleness", "Staleness", "steps", "age of the weights that sampled"),
    Family(ENGINE, "ratio/mean", "Importance ratio", "ratio", "mean, off-policy updates"),
    Family(ENGINE, "ratio/max", "Largest importance ratio", "ratio"),
    Family(ENGINE, "ratio/clipped", "Clipped tokens", "%", "by the surrogate's bounds", share=True),
    Family(OPTIMIZER, "loss", "Loss", "", "of the policy gradient: its level says little"),
    Family(OPTIMIZER, "grad_norm", "Gradient norm", "", "before clipping"),
    Family(OPTIMIZER, "lr", "Learning rate", ""),
    Family(OPTIMIZER, "skipped", "Skipped", "optimizer steps", "refused by the guard"),
    Family(OPTIMIZER, "groups/uniform", "Groups without a difference", "%", "all rewards equal", share=True),
    Family(TIME, "tokens_per_second/(.+)", "Tokens per second, {}", "tokens/s"),
    Family(TIME, "seconds/(.+)", "Seconds, {}", "s per step"),
    Family(TIME, "memory/peak_gb", "Peak memory", "GB", "of the process so far"),
)
BOUNDED, BOUNDS = "correction/mean", ("correction/min", "correction/max")
"""The metric whose band, in a single run, is from these two."""


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of their first runs."""
    found: dict[object, list[Run]] = defaultdict(list)
    for run in runs:
        found[run.kind()].append(run)
    return [Group(_label(mine), mine) for mine in found.values()]


def _label(runs: Sequence[Run]) -> str:
    names = [run.name for run in runs]
    if len(runs) == 1:
        return names[0]
    first, last = min(names), max(names)
    same = "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    common = re.sub(r"[-_. /]*(seed|s)?[-_. /]*$", "", same)
    return f"{common or names[0]} ({len(runs)} runs)"


def bin_width(groups: Sequence[Group]) -> int:
    """How many steps a point stands for, the same for all curves."""
    last = max((run.last_step for group in groups for run in group.runs), default=0)
    points = min(MOST_POINTS, MOST_ROWS // (len(groups) * max(1, len(_names(groups)))))
    return max(1, -(-last // max(1, points)))


def _names(groups: Sequence[Group]) -> list[str]:
    """All metrics but those that are drawn with another."""
    entries = (entry for group in groups for run in group.runs for entry in run.metrics)
    return sorted({name for entry in entries for name in entry} - {"step", *BOUNDS})


def sections_of(groups: Sequence[Group]) -> dict[str, list[Panel]]:
    """Panels by section; metrics that no family knows are under "Other figures"."""
    names, width = _names(groups), bin_width(groups)
    panels: dict[str, list[Panel]] = {section: [] for section in SECTIONS}
    left = list(names)
    for family in FAMILIES:
        for name in names:
            if match := re.fullmatch(family.pattern, name):
                series = _by_group([[_curve(run, name, width) for run in g.runs] for g in groups])
                title = family.title.format(*match.groups())
                panels[family.section].append(Panel(title, family.unit, family.about, family.share, series))
                left.remove(name)
    panels[HELD_OUT] = _validation_panels(groups)
    for name in left:
        series = _by_group([[_curve(run, name, width) for run in g.runs] for g in groups])
        panels[OTHER].append(Panel(name, "", "", False, series))
    drawn = {section: [p for p in found if p.series] for section, found in panels.items()}
    return {section: found for section, found in drawn.items() if found}


def _validation_panels(groups: Sequence[Group]) -> list[Panel]:
    """Accuracy and exact KL of the student per domain, with their 95% intervals."""
    entries = [entry for group in groups for run in group.runs for entry in run.validation]
    domains = sorted({name for entry in entries for name in entry["domains"]})
    panels = []
    for figure in MEASURED:
        for domain in domains:
            series = _by_group([[_measured(run, domain, figure) for run in g.runs] for g in groups])
            title = figure.title.format(domain)
            panels.append(Panel(title, figure.unit, figure.about, figure.unit == "%", series, dots=True))
    return panels


def _by_group(curves: Sequence[Sequence[Points]]) -> dict[int, Points]:
    joined = {place: _joined(mine) for place, mine in enumerate(curves)}
    return {place: points for place, points in joined.items() if points}


def _joined(curves: Sequence[Points]) -> Points:
    """One run's points as they are; of several the mean, with a band from the lowest to the highest."""
    if len(curves) == 1:
        return curves[0]
    points: Points = {}
    for step in sorted({step for curve in curves for step in curve}):
        here = [curve[step][0] for curve in curves if step in curve]
        points[step] = (fmean(here), min(here), max(here))
    return points


def _curve(run: Run, name: str, width: int) -> Points:
    """A metric by step, `width` steps to a point: the mean, at the last step of each."""
    bins: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
    for entry in run.metrics:
        if (value := number(entry, name)) is not None:
            end = min(-(-entry["step"] // width) * width, run.last_step)
            bins[end].append((value, *_bounds(entry, name)))
    points: Points = {}
    for step, found in bins.items():
        values, lows, highs = zip(*found, strict=True)
        mean = fmean(values)
        points[step] = (mean, min(lows), max(highs)) if name == BOUNDED else (mean, mean, mean)
    return points


def _bounds(entry: Mapping[str, Any], name: str) -> tuple[float, float]:
    """A step's smallest and largest value where they are logged, else twice the value itself."""
    value = number(entry, name) or 0.0
    low, high = (number(entry, key) if name == BOUNDED else None for key in BOUNDS)
    return value if low is None else low, value if high is None else high


def _measured(run: Run, domain: str, figure: Measured) -> Points:
    points: Points = {}
    for entry in run.validation:
        found = entry["domains"].get(domain, {})
        value = number(found, figure.key)
        if entry["model"] == "student" and value is not None:
            low, high = number(found, figure.low), number(found, figure.high)
            points[entry["step"]] = (value, value if low is None else low, value if high is None else high)
    return points


def as_json(groups: Sequence[Group]) -> dict[str, Any]:
    """Everything that is drawn, for the page."""
    return {
        "groups": [{"label": group.label, "runs": len(group.runs)} for group in groups],
        "stepsPerPoint": bin_width(groups),
        "sections": [
            {"title": title, "panels": [_panel(panel) for panel in panels]}
            for title, panels in sections_of(groups).items()
        ],
    }


def _panel(panel: Panel) -> dict[str, Any]:
    factor = 100 if panel.share else 1
    rows = [
        [place, step, *(float(f"{factor * value:.6g}") for value in triple)]
        for place, points in panel.series.items()
        for step, triple in sorted(points.items())
    ]
    return {"title": panel.title, "unit": panel.unit, "about": panel.about, "dots": panel.dots, "rows": rows}
