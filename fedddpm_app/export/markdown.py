"""Texts of a run in Markdown: whatever they hold, they are shown as they are, on one line."""

import html
import math
import re
from collections.abc import Sequence

from fedddpm_app.config import one_line
from fedddpm_app.limits import LONGEST_VALUE

_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~:@/$]|(?<=[wW]{3})\.)")  # "www." is a link, too


def literal(text: str, longest: int = LONGEST_VALUE) -> str:
    """Return a text that Markdown shows as it is: no markup, no link, no HTML; of at most ``longest`` characters."""
    return html.escape(_MARKUP.sub(r"\\\1", one_line(text, longest)), quote=False)


def fenced(text: str, language: str) -> str:
    """Return a block of code; its fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; its cells are Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Return a number with four digits; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.4g}"
