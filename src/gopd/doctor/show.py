"""Findings and prompts on the screen, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from gopd.doctor.evidence import SeenRow
from gopd.doctor.finding import Finding, Verdict, worst

STYLES: dict[Verdict, tuple[str, str]] = {
    "fine": ("✓", "green"),
    "unmeasured": ("–", "dim"),
    "warning": ("!", "yellow"),
    "stop": ("✗", "bold red"),
}
LAST, FIRST = 5, 3
"""Prompt tokens shown before the answer, and response tokens after."""
TEXT = 160
"""Characters of a prompt that are shown; of longer ones both ends."""


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found. `seen` are the rows whose prompts are shown."""

    title: str
    findings: Sequence[Finding]
    seen: Sequence[SeenRow] = ()
    tokenizer: PreTrainedTokenizerBase | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst; what could not be measured does not decide."""
        return worst(["fine", *(f.verdict for f in self.findings if f.verdict != "unmeasured")])

    def summary(self) -> str:
        """How many of each, in words."""
        counts = {v: sum(f.verdict == v for f in self.findings) for v in STYLES}
        stops, warnings = counts["stop"], counts["warning"]
        words = [f"{stops} stop" + "s" * (stops != 1)] if stops else ["no stop"]
        words.append(f"{warnings} warning" + "s" * (warnings != 1) if warnings else "no warning")
        words.append(f"{counts['fine']} fine")
        if counts["unmeasured"]:
            words.append(f"{counts['unmeasured']} unmeasured")
        advice = "do not start this run before it is mended" if stops else ""
        return ", ".join(words) + (f"; {advice}" if advice else "")


def show(console: Console, diagnosis: Diagnosis) -> None:
    """Prompts first, as they explain much; then findings, commands that can be pasted, and the count."""
    console.print(Text(visible(diagnosis.title), "bold"))
    for row in diagnosis.seen:
        assert diagnosis.tokenizer is not None
        console.print()
        console.print(Text(_row_title(row), "bold"))
        console.print(prompt_view(row, diagnosis.tokenizer))
    console.print()
    console.print(findings_table(diagnosis.findings))
    console.print()
    for finding in diagnosis.findings:
        if finding.commands:
            console.print(Text(f"for '{visible(finding.check)}', to be pasted:", "bold"))
            console.print(Text(visible(finding.commands, keep="\n")), soft_wrap=True)
            console.print()
    sign, style = STYLES[diagnosis.verdict]
    console.print(Text(f"{sign} {diagnosis.summary()}", style))


def findings_table(findings: Sequence[Finding]) -> Table:
    """One line for each check, its mend below."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        sign, style = STYLES[finding.verdict]
        measured = Text(
            visible(finding.measured, keep="\n"), "dim" if finding.verdict == "unmeasured" else ""
        )
        parts: list[Any] = [measured]
        if finding.mend:
            parts.append(Text.assemble(("mend: ", style), visible(finding.mend)))
        table.add_row(Text(f"{sign} {finding.verdict}", style), visible(finding.check), Group(*parts))
    return table


def prompt_view(row: SeenRow, tokenizer: PreTrainedTokenizerBase) -> RenderableType:
    """The row's prompts side by side; on two lines where all models see the same one."""
    columns: dict[tuple[int, ...], list[str]] = {}
    for role, ids in row.prompts.items():
        columns.setdefault(tuple(ids), []).append(role)
    if len(columns) > 1:
        return prompt_table(row, columns, tokenizer)
    ((ids_seen, roles),) = columns.items()
    last = [(_token(tokenizer, i), "") for i in ids_seen[-LAST:]]
    first = [(_token(tokenizer, i), "cyan") for i in row.response_ids[:FIRST]]
    strip = Text("… ")
    for place, (token, style) in enumerate([*last, *first]):
        strip.append(" ▸ " if place == len(last) else " " if place else "", "bold")
        strip.append(token, style)
    strip.append(" …")
    head = (
        f"{len(ids_seen):,} tokens, the same for {', '.join(roles)}"
        if len(roles) > 1
        else f"{len(ids_seen):,} tokens"
    )
    text = Text(shortened(visible(str(tokenizer.decode(list(ids_seen))))), "dim")
    return Padding(Group(Text(head, "dim"), text, strip), (0, 0, 0, 2))


def prompt_table(
    row: SeenRow, columns: Mapping[tuple[int, ...], Sequence[str]], tokenizer: PreTrainedTokenizerBase
) -> Table:
    """A column for every different prompt; the last prompt tokens line up, and the response follows all of them."""
    table = Table(box=None, header_style="", padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", style="dim", no_wrap=True)
    for seen, roles in columns.items():
        table.add_column(f"{', '.join(roles)}\n{len(seen):,} tokens", overflow="fold", ratio=1)
    texts = [Text(shortened(visible(str(tokenizer.decode(list(seen))))), "dim") for seen in columns]
    table.add_row("  text", *texts)
    for place in range(-LAST, 0):
        cells = [_token(tokenizer, seen[place]) if -place <= len(seen) else "" for seen in columns]
        table.add_row(f"  {place}", *map(Text, cells))
    for place, token in enumerate(row.response_ids[:FIRST]):
        name = "  answer" if place == 0 else f"  +{place}"
        table.add_row(name, *(Text(_token(tokenizer, token), "cyan") for _ in columns))
    return table


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Everything."""
    return {
        "verdict": diagnosis.verdict,
        "title": diagnosis.title,
        "findings": [
            {
                "check": finding.check,
                "verdict": finding.verdict,
                "measured": finding.measured,
                "mend": finding.mend,
                "commands": finding.commands,
                "figures": finding.figures,
            }
            for finding in diagnosis.findings
        ],
        "rows": [
            _row_json(row, diagnosis.tokenizer) for row in diagnosis.seen if diagnosis.tokenizer is not None
        ],
    }


def _row_json(row: SeenRow, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "where": row.where,
        "route": row.route,
        "prompts": {
            role: {
                "tokens": len(ids),
                "text": str(tokenizer.decode(ids)),
                "last_ids": ids[-LAST:],
                "last_tokens": [_token(tokenizer, i) for i in ids[-LAST:]],
            }
            for role, ids in row.prompts.items()
        },
        "response_ids": row.response_ids[:FIRST],
        "response_tokens": [_token(tokenizer, i) for i in row.response_ids[:FIRST]],
    }


def visible(text: str, keep: str = "") -> str:
    """Control characters, and those that change the direction of text, as their escapes."""
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str) -> str:
    """Both ends of a long text."""
    return text if len(text) <= TEXT else f"{text[: TEXT // 2]} … {text[-TEXT // 2 :]}"


def _token(tokenizer: PreTrainedTokenizerBase, index: int) -> str:
    """A token's text, spaces visible too; parts of a character as the vocabulary writes them."""
    text = str(tokenizer.decode([index]))
    if "\ufffd" in text:
        text = str(tokenizer.convert_ids_to_tokens(index))
    return visible(text).replace(" ", "␣")


def _row_title(row: SeenRow) -> str:
    return visible(row.where) + (f", for teacher {row.route}" if row.route is not None else "")
