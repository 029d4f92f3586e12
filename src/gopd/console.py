"""What the user sees: progress of the running phase, a line per step, tables of validations."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from gopd.cost import Limits
from gopd.live import LiveProgress
from gopd.profile import PhaseProfile
from gopd.tracking import json_line
from gopd.validate import Domain, Validation

PLAIN_WIDTH = 200
"""Columns of tables that go to a file or a pipe, so that none is cut."""
STEP_FIGURES = {
    "loss": "loss",
    "kl_to_target": "KL",
    "kl_to_reference": "KL",
    "entropy": "entropy",
    "response_tokens/mean": "tokens",
    "truncated": "truncated",
    "grad_norm": "grad",
    "skipped": "skipped",
}
"""Figures of a step's line, with their short names there."""


class Display:
    """Live bars and curves on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH)
        self._progress = LiveProgress(self.console)
        self._steps: TaskID | None = None

    @contextmanager
    def run(self, total: int | None, done: int, name: str = "steps") -> Iterator[None]:
        """Shows the bar of the whole while inside: steps, or what `name` says; None: nobody knows how many."""
        with self._progress:
            self._steps = task = self._progress.add_task(name, total=total, completed=done, note="")
            try:
                yield
            finally:
                self._progress.remove_task(task)
                self._steps = None

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Phase]:
        """Shows a bar for one phase while inside."""
        task = self._progress.add_task(f"  {name}", total=total, note="")
        try:
            yield Phase(self._progress, task)
        finally:
            self._progress.remove_task(task)

    def say(self, text: str) -> None:
        """One line, above the bars."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def recall(self, entries: Sequence[Mapping[str, float | None]]) -> None:
        """Steps of an earlier process, for the curves."""
        for figures in entries:
            self._progress.remember(figures)

    def step(self, step: int, total: int | None, figures: Mapping[str, float], seconds: float) -> None:
        """The line of a finished step."""
        of = "" if total is None else f"/{total}"
        shown = [f"{short} {figures[name]:.3g}" for name, short in STEP_FIGURES.items() if name in figures]
        shown += [f"{name} {value:.2f}" for name, value in figures.items() if name.startswith("reward/")]
        self.say(f"step {step}{of}  " + "  ".join(shown) + f"  {seconds:.1f} s")
        self._progress.remember(figures)
        if self._steps is not None:
            self._progress.update(self._steps, completed=step)

    def advance(self) -> None:
        """One more of what `run` counts is done, without a line of its own."""
        if self._steps is not None:
            self._progress.advance(self._steps)

    def validation(self, result: Validation) -> None:
        """The line of one validation."""
        shown = [f"{name} {_accuracy(domain)}" for name, domain in result.domains.items()]
        if kl := _kl(result):
            shown.append(f"KL to target {kl} nats/token")
        self.say(f"validation: {result.model}, step {result.step}  " + "  ".join(shown))

    def table(self, rows: Sequence[tuple[str, Validation]]) -> None:
        """Validations side by side: accuracy per domain with its 95% interval, and the KL to the target."""
        domains = sorted({name for _, validation in rows for name in validation.domains})
        table = Table(title="accuracy (95% interval)", title_justify="left")
        table.add_column("model")
        for domain in domains:
            table.add_column(domain, justify="right")
        with_kl = any(d.kl_to_target is not None for _, v in rows for d in v.domains.values())
        if with_kl:
            table.add_column("KL to target (nats/token)", justify="right")
        for name, validation in rows:
            cells = [_accuracy(validation.domains.get(domain)) for domain in domains]
            table.add_row(name, *cells, *([_kl(validation)] if with_kl else []))
        self.console.print(table)

    def profile(self, phases: Sequence[PhaseProfile], limits: Limits) -> None:
        """Where the steps' time and memory went, phase by phase."""
        rates = f"{limits.flops_per_second / 1e9:.0f} GFLOP/s, {limits.bytes_per_second / 1e9:.0f} GB/s"
        table = Table(title=f"profile: a step's median, against {rates} measured here", title_justify="left")
        table.add_column("phase")
        for column in ("seconds", "of the step", "TFLOP needed", "least seconds", "of the limit"):
            table.add_column(column, justify="right")
        table.add_column("bound by")
        table.add_column("peak GB", justify="right")
        for p in phases:
            needed = ["", "", ""]
            if p.teraflop is not None and p.limit_seconds is not None and p.of_limit is not None:
                needed = [f"{p.teraflop:.3g}", f"{p.limit_seconds:.3g}", f"{p.of_limit:.0%}"]
            table.add_row(
                p.name, f"{p.seconds:.3g}", f"{p.share:.0%}", *needed, p.bound or "", f"{p.peak_gb:.2f}"
            )
        self.console.print(table)


class JsonDisplay(Display):
    """What happens as JSON lines on standard output, for programs; everything else goes to standard error."""

    def __init__(self) -> None:
        super().__init__(Console(stderr=True, width=None if sys.stderr.isatty() else PLAIN_WIDTH))

    def step(self, step: int, total: int | None, figures: Mapping[str, float], seconds: float) -> None:
        """The figures of `metrics.jsonl`."""
        super().step(step, total, figures, seconds)
        _emit("step", {"step": step, "steps": total, **figures})

    def validation(self, result: Validation) -> None:
        """The figures of `validation.jsonl`."""
        super().validation(result)
        _emit("validation", result.entry())

    def finished(self, run_folder: Path) -> None:
        """The last line of a run that ended well."""
        _emit("finished", {"run_folder": str(run_folder)})


def _emit(event: str, figures: Mapping[str, Any]) -> None:
    print(json_line({"event": event, **figures}), flush=True)


class Phase:
    """The bar of one phase."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task, self._start = progress, task, time.perf_counter()

    def rows(self, done: int, before: int = 0) -> None:
        """So many rows are finished, after so many before."""
        self._progress.update(self._task, completed=before + done)

    def of(self, done: int, total: int) -> None:
        """So many of so many are done."""
        self._progress.update(self._task, completed=done, total=total)

    def sampled(self, done: int, total: int, tokens: int) -> None:
        """Rows finished and tokens drawn so far."""
        rate = tokens / max(time.perf_counter() - self._start, 1e-9)
        self._progress.update(self._task, completed=done, total=total, note=f"{rate:,.0f} tokens/s")


def _accuracy(domain: Domain | None) -> str:
    if domain is None:
        return ""
    if domain.accuracy is None or domain.low is None or domain.high is None:
        return "not graded"
    return f"{100 * domain.accuracy:.1f}% [{100 * domain.low:.1f}, {100 * domain.high:.1f}]"


def _kl(validation: Validation) -> str:
    known = [d.kl_to_target for d in validation.domains.values() if d.kl_to_target is not None]
    return f"{sum(known) / len(known):.4f}" if known else ""
