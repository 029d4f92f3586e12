"""A Markdown extension for the site: `$…$` and `$$…$$` become MathML at build time, so that pages need no script."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from math_core import LatexToMathML

FORMULA = r"(?<![\\$])(\$\$?)(?=\S)((?:\\.|[^$\\])+?)(?<=\S)\1(?!\$)"
"""After one dollar or two, no space; no dollar inside."""


class Formula(InlineProcessor):
    """One formula; raises LatexError for one that cannot be read, which ends the build."""

    def handleMatch(self, m: re.Match[str], data: str) -> tuple[ElementTree.Element | str, int, int]:  # type: ignore[override]
        """The formula as an element that later patterns leave alone."""
        mathml = LatexToMathML().convert_with_local_state(m.group(2), displaystyle=m.group(1) == "$$")
        return self.md.htmlStash.store(mathml), m.start(0), m.end(0)


class Formulas(Extension):
    """What Python-Markdown loads."""

    def extendMarkdown(self, md: Markdown) -> None:
        """After code spans (190), before escapes (180)."""
        md.inlinePatterns.register(Formula(FORMULA, md), "formula", 185)


def makeExtension(**settings: object) -> Formulas:
    """The name by which Python-Markdown finds an extension."""
    return Formulas(**settings)
