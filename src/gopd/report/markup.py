"""HTML made of plain values: every text is made visible and escaped here, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from gopd.report.text import visible


class Html(str):
    """Text that is HTML already."""


def text(value: object) -> Html:
    """A value as text of the page."""
    return value if isinstance(value, Html) else Html(escape(visible(str(value))))


def join(parts: Sequence[Html], between: str = "\n") -> Html:
    """HTML after HTML."""
    return Html(between.join(parts))


def element(tag: str, content: object = "", /, **attributes: str) -> Html:
    """`<tag name="value">content</tag>`; a trailing _ of a name goes, other _ become -."""
    pairs = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(value)}"' for name, value in attributes.items()
    )
    return Html(f"<{tag}{pairs}>{text(content)}</{tag}>")


def table(caption: str, head: Sequence[object], rows: Sequence[Sequence[object]], names: int = 1) -> Html:
    """A table that scrolls by itself where it is too wide; the first `names` columns are names, the others figures."""

    def cell(tag: str, place: int, value: object) -> Html:
        kind = "name" if place < names else "figure"
        return element(tag, value, class_=kind, **({"scope": "col"} if tag == "th" else {}))

    top = element("tr", join([cell("th", place, value) for place, value in enumerate(head)]))
    body = [element("tr", join([cell("td", i, value) for i, value in enumerate(row)])) for row in rows]
    whole = [element("caption", caption), element("thead", top), element("tbody", join(body))]
    scrolls = {"class_": "scrolls", "tabindex": "0", "role": "region", "aria_label": caption}
    return element("div", element("table", join(whole)), **scrolls)


def swatch(group: int) -> Html:
    """The line by which curves of a group are drawn: its colour and its dashes."""
    line = f'<line x1="0" y1="5" x2="26" y2="5" class="line c{group % COLOURS} d{dashes(group)}"/>'
    return Html(
        f'<svg class="swatch" viewBox="0 0 26 10" width="26" height="10" aria-hidden="true">{line}</svg>'
    )


COLOURS, DASHES = 8, 5


def dashes(group: int) -> int:
    """Which dashes a group's line has: with the colour they tell forty groups apart."""
    return (group + group // COLOURS) % DASHES


def figure(value: float | None, share: bool = False) -> str:
    """A number for reading: four digits, or a percentage; a dash where there is none."""
    if value is None:
        return "–"
    if share:
        return f"{100 * value:.1f}%"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")
    return f"{value:.2e}"


def interval(value: float | None, low: float | None, high: float | None, share: bool = False) -> str:
    """A number with its interval."""
    if value is None or low is None or high is None:
        return figure(value, share)
    if share:
        return f"{100 * value:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{value:.4f} [{low:.4f}, {high:.4f}]"
