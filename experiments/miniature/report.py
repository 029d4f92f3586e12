"""Writes `README.md`, its tables and its figures from the cells' results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import plots
from cells import CELLS, ESTIMATORS, FOUR, PAIR, SCALES, Size
from claims import CLAIMS, LABELS
from intervals import Results
from problems import TEACHER_OF

HERE = Path(__file__).resolve().parent
Rows = Sequence[Sequence[str]]


def write(results: Path, folder: Path, size: Size) -> None:
    """The report of all seeds that every cell has; says so when some are missing."""
    seeds = [s for s in range(size.seeds) if all((results / c.name / f"{s}.json").exists() for c in CELLS)]
    if len(seeds) < 2:
        print(f"no report yet: {len(seeds)} seeds of {size.seeds} are complete, and intervals need two")
        return
    found = Results(results, seeds)
    plots.write(found, folder, size.prompts)
    text = (HERE / "text.md").read_text(encoding="utf-8")
    for name, part in parts(found, results, size).items():
        text = text.replace(f"<!-- {name} -->", part)
    (folder / "README.md").write_text(text, encoding="utf-8")
    print(f"written: {folder / 'README.md'}, from {len(seeds)} seeds")


def parts(found: Results, results: Path, size: Size) -> dict[str, str]:
    """What the text has places for."""
    halves = len(found.seeds) // 2
    return {
        "sizes": _sizes(found, size),
        "claims": table(("from", "claim", "effect (points)", "verdict"), list(_claims(found))),
        "halves": _halves(Results(results, found.seeds[:halves]), Results(results, found.seeds[halves:])),
        "single": table(("", *PAIR), list(_single(found))),
        "sweep": table(
            (
                "domain",
                "λ",
                "accuracy",
                "tokens",
                "entropy",
                "KL to teacher",
                "KL to base",
                "implicit reward",
            ),
            list(_sweep(found)),
        ),
        "two": table(("", *PAIR, "mean"), list(_merged(found, "two", PAIR, ("base", "math", "code")))),
        "four": table(("", *FOUR, "mean"), list(_merged(found, "four", FOUR, ("base",)))),
        "saturated": table(
            ("", *PAIR, "mean"),
            list(_merged(found, "saturated", PAIR, ("math-saturated", "code-saturated"))),
        ),
        "strong": table(("", "arithmetic"), list(_strong(found))),
        "estimators": table(
            ("estimator", "accuracy", "noise of a gradient", "seconds per step"), list(_estimators(found))
        ),
    }


def table(head: Sequence[str], rows: Rows) -> str:
    """In Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _sizes(found: Results, size: Size) -> str:
    seconds = sum(entry["seconds"] for cell in CELLS for entry in found.entries(cell.name))
    return (
        f"{len(found.seeds)} of {size.seeds} seeds are complete: {len(CELLS)} cells each, {seconds / 3600:.1f} core "
        f"hours. {size.prompts} prompts per domain and step, {size.steps} steps ({size.strong_steps} from strong to "
        f"weak), learning rate {size.lr:g}, falling linearly; {size.problems} held-out problems per domain, one "
        f"response each at temperature 1."
    )


def _claims(found: Results) -> Iterator[Sequence[str]]:
    for claim in CLAIMS:
        effect = claim.effect(found)
        yield claim.source, claim.text, effect.percent("+"), claim.verdict(effect)


def _halves(first: Results, second: Results) -> str:
    """Whether another set of seeds would be expected to say the same."""
    pairs = [(c, c.effect(first), c.effect(second)) for c in CLAIMS]
    verdicts = [(c, c.verdict(a), c.verdict(b)) for c, a, b in pairs]
    same = sum(a == b for _, a, b in verdicts)
    against = [c.text for c, a, b in verdicts if {a, b} == {"holds", "does not hold"}]
    rows = [
        (c.text, f"{a.percent('+')}, {c.verdict(a)}", f"{b.percent('+')}, {c.verdict(b)}")
        for c, a, b in pairs
        if c.verdict(a) != c.verdict(b)
    ]
    seeds = f"{len(first.seeds)} and {len(second.seeds)}"
    head = f"{same} of {len(pairs)} verdicts are the same in both halves of the seeds ({seeds}); "
    head += f"{len(against)} contradict each other" + (f": {'; '.join(against)}." if against else ".")
    shown = table(("claim", "first half", "second half"), rows) if rows else ""
    return f"{head}\n\n{shown}".rstrip()


def _single(found: Results) -> Iterator[Sequence[str]]:
    cells = {
        "base": "models/base",
        "teacher": "models/{}",
        "teacher, more RL steps": "single/{}/more-rl",
        "OPD": "single/{}/1",
        "ExOPD": "single/{}/1.25",
    }
    for label, cell in cells.items():
        yield label, *(found.accuracy(cell.format(TEACHER_OF[d]), d).percent() for d in PAIR)


def _sweep(found: Results) -> Iterator[Sequence[str]]:
    for domain in PAIR:
        for scale in SCALES:
            cell = f"single/{TEACHER_OF[domain]}/{scale:g}"
            keys = (
                ("tokens", ".2f"),
                ("entropy", ".4f"),
                ("kl_to_teacher", ".4f"),
                ("kl_to_base", ".4f"),
                ("implicit", ".4f"),
            )
            figures = [format(found.figure(cell, domain, key).mean, form) for key, form in keys]
            yield domain, f"{scale:g}", found.accuracy(cell, domain).percent(), *figures


def _merged(
    found: Results, group: str, domains: Sequence[str], models: Sequence[str]
) -> Iterator[Sequence[str]]:
    for model in models:
        yield _row(found, f"`{model}`", f"models/{model}", domains)
    if group == "four":
        own = [found.accuracy(f"models/{TEACHER_OF[d]}", d).percent() for d in domains]
        yield "each domain's teacher", *own, ""
    for method, label in LABELS.items():
        if f"{group}/{method}" in found:
            yield _row(found, label, f"{group}/{method}", domains)


def _row(found: Results, label: str, cell: str, domains: Sequence[str]) -> Sequence[str]:
    each = [found.accuracy(cell, domain).percent() for domain in domains]
    return label, *each, found.accuracy(cell, *domains).percent()


def _strong(found: Results) -> Iterator[Sequence[str]]:
    cells = {
        "student before (`base`)": "models/base",
        "the teacher's base (`large-base`)": "models/large-base",
        "teacher (`large-math`)": "models/large-math",
        "SFT": "strong/sft",
        "OPD": "strong/opd",
        "ExOPD, the student's base as reference": "strong/exopd",
        "ExOPD, the teacher's base as reference": "strong/exopd-corrected",
    }
    for label, cell in cells.items():
        yield label, found.accuracy(cell, "arithmetic").percent()


def _estimators(found: Results) -> Iterator[Sequence[str]]:
    noise = [entry["variance"] for entry in found.entries("estimators/variance")]
    for name in ("sampled", *ESTIMATORS):
        cell = "single/math/1.25" if name == "sampled" else f"estimators/{name}"
        ratio = np.mean([np.sqrt(v[name]["variance"] / v["full"]["signal"]) for v in noise])
        seconds = np.mean([np.mean(entry["curves"]["seconds"]) for entry in found.entries(cell)])
        yield name, found.accuracy(cell, "arithmetic").percent(), f"{ratio:.2f}", f"{seconds:.2f}"
