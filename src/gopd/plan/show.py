"""A plan as tables on the screen, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from gopd.plan.devices import LOCAL_LATENCY, REMOTE_LATENCY, RESERVE, Device
from gopd.plan.fit import Fit
from gopd.plan.layout import Layout
from gopd.plan.propose import Choice
from gopd.plan.sizes import ModelSizes
from gopd.plan.timing import Timing
from gopd.plan.workload import Workload


def show_assumptions(
    console: Console, work: Workload, device: Device, count: int, notes: Sequence[str]
) -> None:
    """What everything below rests on."""
    console.print("[bold]A prediction, not a measurement.[/bold] It rests on:")
    for role, model in models_of(work).items():
        active = f", {model.cost.body + model.cost.head:,} used by a token" if model.experts else ""
        console.print(f"  {role}: {model.parameters:,} parameters{active} ({model.source})")
    rates = f"{device.flops / 1e12:,.4g} TFLOP/s, {device.bandwidth / 1e9:,.4g} GB/s"
    console.print(f"  {count} × {device.name}: {device.memory / 1e9:.4g} GB, {rates}")
    console.print(
        f"  reached: {device.update_share:.0%} of the products in update, scoring and prompts, "
        f"{device.decode_share:.0%} of the bandwidth in decoding; {RESERVE:.0%} of the memory is not the model's"
    )
    longest = max(work.responses)
    console.print(
        f"  {len(work.responses):,} rows a step: prompts of {work.prompt:,} tokens, responses of "
        f"{work.mean_response:,.0f} on average, log-normal, the longest {longest:,}"
    )
    if count > 1:
        latencies = (
            f"{LOCAL_LATENCY * 1e6:.0f} µs a hop in a node, {REMOTE_LATENCY * 1e6:.0f} µs between nodes"
        )
        console.print(f"  links at their stated rate, with {latencies}; teachers have equally many prompts")
    for note in notes:
        console.print(f"  {note}")


def models_of(work: Workload) -> dict[str, ModelSizes]:
    """Every role's model."""
    found = {"student": work.student}
    for seat in work.seats:
        teacher = "reference" if seat.name == "reference" else f"teacher {seat.name}"
        found[teacher] = seat.teacher
        if seat.reference is not None:
            found[f"reference of {seat.name}"] = seat.reference
    return found


def show_choice(console: Console, title: str, choice: Choice, device: Device) -> None:
    """Layout, memory and time."""
    console.print(f"\n[bold]{title}[/bold]: {in_words(choice.layout, choice.work)}")
    console.print(memory_table(choice.fit))
    for role in choice.fit.roles:
        if not role.fits:
            over = (role.total - role.room) / 1e9
            console.print(f"  [bold]{role.role} does not fit[/bold], by {over:.1f} GB: {role.advice}")
    if choice.work.sampled and choice.fit.fits:
        console.print(f"  an engine has memory for {choice.fit.slots} rows side by side")
    console.print(timing_table(choice.timing))
    console.print(f"  {verdict(choice, device)}")


def in_words(layout: Layout, work: Workload) -> str:
    """Who runs where."""
    if layout.alone:
        return "everything in one process"
    words = [f"learner on {layout.ranks}"]
    if work.sampled:
        spread = f" × {layout.tensor_parallel} devices" if layout.tensor_parallel > 1 else ""
        words.append(f"{layout.replicas} {layout.engine} engines{spread}")
    if work.seats:
        words.append(f"{layout.scorers} scorers per teacher")
    words.append("sharing devices" if layout.together else "each on its own devices")
    return ", ".join(words) + (", offloaded" if layout.offload else "")


def memory_table(found: Fit) -> Table:
    """GB of one device of each role."""
    table = Table(title="memory of one device, GB", title_justify="left")
    for name in ("role", "parts", "sum", "room", ""):
        table.add_column(name, justify="right" if name in ("sum", "room") else "left")
    for role in found.roles:
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in role.parts.items() if size > 5e5)
        row = (f"{role.total / 1e9:.2f}", f"{role.room / 1e9:.2f}", "fits" if role.fits else "TOO LARGE")
        table.add_row(role.role, parts, *row)
    return table


def timing_table(timing: Timing) -> Table:
    """Seconds of each phase."""
    table = Table(title="time of one step", title_justify="left")
    for name in ("phase", "s", "share", "PFLOP", "binds", ""):
        table.add_column(name, justify="right" if name in ("s", "share", "PFLOP") else "left")
    total = sum(phase.seconds for phase in timing.phases)
    for phase in timing.phases:
        flops = f"{phase.flops / 1e15:,.4g}" if phase.flops else ""
        share = f"{phase.seconds / total:.0%}"
        table.add_row(phase.name, f"{phase.seconds:,.2f}", share, flops, phase.binds, phase.note)
    return table


def verdict(choice: Choice, device: Device) -> str:
    """The step's time and what binds it."""
    timing, work = choice.timing, choice.work
    speed = work.tokens / timing.seconds / choice.layout.devices(work)
    binds = f"{timing.binds.name}, which {timing.binds.binds} bind"
    text = f"{timing.seconds:,.1f} s a step, {speed:,.0f} tokens/s a device; most of it is {binds}"
    return text if choice.fit.fits else f"would be {text}, if it fitted"


def as_json(choice: Choice) -> dict[str, Any]:
    """Everything of one layout."""
    return {
        "layout": asdict(choice.layout),
        "tokens_per_micro_batch": choice.work.budget,
        "fits": choice.fit.fits,
        "rows_side_by_side": choice.fit.slots,
        "memory": [asdict(role) | {"total": role.total, "fits": role.fits} for role in choice.fit.roles],
        "seconds": choice.timing.seconds,
        "phases": [asdict(phase) for phase in choice.timing.phases],
    }
