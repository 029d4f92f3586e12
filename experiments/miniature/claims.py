"""The paper's claims, each as one number with an interval, and what becomes of it at this scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cells import FOUR, MATH, PAIR
from intervals import Interval, Results
from problems import TEACHER_OF

MARGIN = 0.02
"""How far "as good as" may be off."""


@dataclass(frozen=True)
class Claim:
    """`effect` is positive where the claim holds. `equal`: it holds where the effect is within ± MARGIN instead."""

    source: str
    text: str
    effect: Callable[[Results], Interval]
    equal: bool = False

    def verdict(self, effect: Interval) -> str:
        """By the 95% interval alone."""
        low, high = (-MARGIN, MARGIN) if self.equal else (0.0, float("inf"))
        if low < effect.low and effect.high < high:
            return "holds"
        if effect.high < low or effect.low > high:
            return "does not hold"
        return "undecided"


def gain(source: str, text: str, cell: str, over: str, *domains: str, equal: bool = False) -> Claim:
    """A claim that one cell does better than another, or as well."""

    def effect(results: Results) -> Interval:
        return results.gain(cell, over, *domains)

    return Claim(source, text, effect, equal)


def _single() -> list[Claim]:
    found = []
    for domain in PAIR:
        name = TEACHER_OF[domain]
        opd, exopd, teacher = f"single/{name}/1", f"single/{name}/1.25", f"models/{name}"
        about = f"{domain}: "
        found += [
            gain(
                "Table 1",
                about + "OPD is as good as its teacher, within 2 points",
                opd,
                teacher,
                domain,
                equal=True,
            ),
            gain("Table 1", about + "ExOPD passes its teacher", exopd, teacher, domain),
            gain("Table 1", about + "ExOPD does better than OPD", exopd, opd, domain),
            gain(
                "Table 1",
                about + "ExOPD does better than more RL steps of the teacher",
                exopd,
                f"single/{name}/more-rl",
                domain,
            ),
            gain(
                "Fig 2",
                about + "λ = 0.5 does better than the reference",
                f"single/{name}/0.5",
                f"single/{name}/0",
                domain,
            ),
            gain("Fig 2", about + "λ = 1 does better than λ = 0.5", opd, f"single/{name}/0.5", domain),
            gain("Fig 2", about + "λ = 1.25 does better than λ = 1.5", exopd, f"single/{name}/1.5", domain),
        ]
    return found


def _merging() -> list[Claim]:
    found = []
    for name, domains in (("two", PAIR), ("four", FOUR)):
        about = f"{name} teachers: "
        for method, over in (
            ("exopd", "opd"),
            ("opd", "sft"),
            ("exopd", "sft"),
            ("exopd", "expo-0.25"),
            ("exopd", "expo-0.5"),
        ):
            text = f"{about}{LABELS[method]} does better than {LABELS[over]}"
            found.append(gain("Table 2", text, f"{name}/{method}", f"{name}/{over}", *domains))
        for domain in domains:
            text = f"{about}ExOPD passes the teacher of {domain}"
            found.append(gain("Table 2", text, f"{name}/exopd", f"models/{TEACHER_OF[domain]}", domain))
    found.append(
        gain(
            "Table 8",
            "saturated teachers: ExOPD does better than OPD",
            "saturated/exopd",
            "saturated/opd",
            *PAIR,
        )
    )
    found += [
        gain(
            "Table 8",
            f"saturated teachers: ExOPD passes the teacher of {domain}",
            "saturated/exopd",
            f"models/{TEACHER_OF[domain]}-saturated",
            domain,
        )
        for domain in PAIR
    ]
    return found


def _strong() -> list[Claim]:
    return [
        gain("Table 3", "strong to weak: OPD does better than SFT", "strong/opd", "strong/sft", *MATH),
        gain("Table 3", "strong to weak: ExOPD does better than OPD", "strong/exopd", "strong/opd", *MATH),
        gain(
            "Fig 6",
            "strong to weak: the teacher's base as reference does better than the student's",
            "strong/exopd-corrected",
            "strong/exopd",
            *MATH,
        ),
    ]


LABELS = {
    "sft": "SFT",
    "average": "the average",
    "expo-0.25": "ExPO (α = 0.25)",
    "expo-0.5": "ExPO (α = 0.5)",
    "opd": "OPD",
    "exopd": "ExOPD",
}
CLAIMS = (*_single(), *_merging(), *_strong())
