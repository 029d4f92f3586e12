"""Writes the tables of `docs/plan.md` from `measured.json` and `scaling.json`, between its markers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
DOCS = FOLDER.parents[1] / "docs"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def memory(rows: list[dict[str, Any]]) -> str:
    """Predicted against measured peaks."""
    found = []
    for row in rows:
        off = f"{row['predicted'] / row['tensors'] - 1:+.1%}"
        kept = f"{row['keep'] / 1e6:,.0f}" if "keep" in row else ""
        sizes = (f"{row['predicted'] / 1e6:,.0f}", f"{row['tensors'] / 1e6:,.0f}")
        found.append((row["case"], f"{row['budget']:,}", *sizes, off, kept))
    head = (
        "model",
        "tokens",
        "predicted, MB",
        "measured, MB",
        "off by",
        "measured with freed memory kept, MB",
    )
    return table(head, found)


def scoring(rows: list[dict[str, Any]]) -> str:
    """The same for a teacher and its reference that score."""
    found = []
    for row in rows:
        sizes = (f"{row['predicted'] / 1e6:,.0f}", f"{row['tensors'] / 1e6:,.0f}")
        off = f"{row['predicted'] / row['tensors'] - 1:+.1%}"
        found.append((row["case"], f"{row['budget']:,}", *sizes, off))
    return table(("teacher and reference", "tokens", "predicted, MB", "measured, MB", "off by"), found)


def sharded(rows: list[dict[str, Any]]) -> str:
    """The same for ranks that share a model."""
    found = []
    for row in rows:
        peak = max(row["peaks"])
        sizes = (f"{row['predicted'] / 1e6:,.0f}", f"{peak / 1e6:,.0f}")
        found.append((row["case"], f"{row['budget']:,}", *sizes, f"{row['predicted'] / peak - 1:+.1%}"))
    return table(("model, 2 ranks", "tokens", "predicted, MB", "measured, MB", "off by"), found)


def recipes(found: dict[str, Any]) -> str:
    """The paper's recipes on 8 GPUs."""
    rows = []
    for name, plan in found.items():
        layout, phases = plan["layout"], {p["name"]: p for p in plan["phases"]}
        samples = "sampling" in phases
        where = "shared" if layout["colocate"] else f"learner {layout['ranks']}"
        if samples and not layout["colocate"]:
            where += f", samplers {layout['replicas'] * layout['tensor_parallel']}"
            where += f", scorers {layout['scorers']}"
        if samples:
            where += f"; {layout['replicas']} engines × {layout['tensor_parallel']}"
        where += "; offloaded" if layout["offload"] else ""
        seconds = [
            f"{phases[p]['seconds']:,.0f}" if p in phases else "" for p in ("sampling", "scoring", "update")
        ]
        largest = max(plan["memory"], key=lambda role: role["total"])
        gigabytes = f"{largest['role']} {largest['total'] / 1e9:.0f}"
        rows.append((name, where, gigabytes, *seconds, f"{plan['seconds']:,.0f}"))
    head = ("recipe", "devices", "most memory, GB", "sampling, s", "scoring, s", "update, s", "step, s")
    return table(head, rows)


def scaling(points: list[dict[str, Any]]) -> str:
    """Seconds a step and tokens/s a GPU, by setting and size; the best setting in bold."""
    names = list(dict.fromkeys(point["setting"] for point in points))
    by = {(p["setting"], p["devices"]): p for p in points}
    rows = []
    for devices in sorted({point["devices"] for point in points}):
        mine = [by[name, devices] for name in names]
        best = max(p["per_device"] for p in mine if p["fits"])
        cells = []
        for p in mine:
            text = f"{p['timing']['seconds']:,.0f} s, {p['per_device']:,.0f}"
            cells.append("too large" if not p["fits"] else f"**{text}**" if p["per_device"] == best else text)
        rows.append((f"{devices:,}", *cells))
    return table(("GPUs", *names), rows)


def main() -> None:
    measured = json.loads((FOLDER / "measured.json").read_text())
    tree = json.loads((FOLDER / "scaling.json").read_text())
    parts = {
        "memory": memory(measured["memory"]),
        "scoring": scoring(measured["scoring"]),
        "sharded": sharded(json.loads((FOLDER / "sharded.json").read_text())),
        "recipes": recipes(tree["recipes"]),
        "scaling": scaling(tree["scaling"]),
    }
    path = DOCS / "plan.md"
    text = path.read_text()
    for name, content in parts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        assert re.search(pattern, text, re.DOTALL), name
        text = re.sub(
            pattern, lambda found, new=content: f"{found[1]}\n{new}\n\n{found[2]}", text, flags=re.DOTALL
        )
    path.write_text(text)
    shutil.copy(FOLDER / "scaling.svg", DOCS / "plan.svg")


if __name__ == "__main__":
    main()
