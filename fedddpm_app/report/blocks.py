"""What a report is made of: sections of texts, tables, charts and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any, ClassVar

from fedddpm_app.config import one_line
from fedddpm_app.limits import LONGEST_TEXT

_WORDS = frozenset("{[\"'`")  # how a quoted text or an object begins
MAX_ROWS = 1_000  # of a table: more make the file large, and nobody reads them
_MARKUP = 20  # characters around a cell


@dataclass(frozen=True)
class Text:
    """Paragraphs; ``code`` shows them as a command or a file."""

    kind: ClassVar[str] = "text"
    paragraphs: Sequence[str]
    code: bool = False


@dataclass(frozen=True)
class Facts:
    """Large numbers with their names, as (name, value, note)."""

    kind: ClassVar[str] = "facts"
    items: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Table:
    """A table of texts; one with ``folded`` is closed at first, and ``most`` is the limit of its characters."""

    kind: ClassVar[str] = "table"
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False
    most: int = 200_000

    @property
    def shown(self) -> Sequence[Sequence[str]]:
        """The first rows, at most ``MAX_ROWS`` and ``most`` characters."""
        sizes = accumulate(sum(map(len, row)) + _MARKUP * len(row) for row in self.rows[:MAX_ROWS])
        return self.rows[: sum(size <= self.most for size in sizes)]

    @property
    def texts(self) -> list[bool]:
        """Whether each column has words, which begin at the left; numbers end at the right."""
        columns = list(zip(*self.shown, strict=True)) or [()] * len(self.headings)
        return [any(item[:1].isalpha() or item[:1] in _WORDS for item in column if item) for column in columns]

    @property
    def left_out(self) -> int:
        """The number of rows that are not shown."""
        return len(self.rows) - len(self.shown)


@dataclass(frozen=True)
class Chart:
    """A plot: a Vega-Lite specification, with a text for those who do not see it, and its numbers as a table.

    Attributes
    ----------
    title : str
        Above the plot.
    alt : str
        What the plot shows.
    spec : mapping
        Of Vega-Lite; its width is that of the page.
    table : Table
        The numbers.
    wide : bool
        Whether it takes the page's whole width.
    note : str
        Below the plot.
    """

    kind: ClassVar[str] = "chart"
    title: str
    alt: str
    spec: Mapping[str, Any]
    table: Table
    wide: bool = True
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture inside the page, as a ``data:`` URL."""

    kind: ClassVar[str] = "picture"
    title: str
    alt: str
    url: str
    width: int
    height: int
    wide: bool = False


@dataclass(frozen=True)
class Section:
    """A heading with its blocks; one without blocks is not shown."""

    name: str
    title: str
    blocks: Sequence[Any]
    by_cost: bool = False

    @property
    def rows(self) -> list[tuple[bool, list[Any]]]:
        """The blocks, grouped into wide ones and rows of others."""
        grouped = groupby(self.blocks, key=lambda block: getattr(block, "wide", True))
        return [(wide, list(blocks)) for wide, blocks in grouped]


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes
    ----------
    title, kind : str
        The name of the run or comparison, and which of both it is.
    status : str
        Such as ``completed``.
    summary : str
        One sentence.
    sections : sequence of Section
        In order.
    refresh : int
        Seconds after which the browser reads the file again; 0 = never.
    """

    title: str
    kind: str
    status: str
    summary: str
    sections: Sequence[Section] = field(default_factory=list)
    refresh: int = 0


def cell(value: object) -> str:
    """Return a value of a JSON file as the text of a table's cell: numbers with 4 significant digits."""
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    if isinstance(value, int | float):
        whole = isinstance(value, int) or abs(value) >= 1e4
        return f"{value:,.0f}" if whole and abs(value) < 1e15 else f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell, value))
    return one_line(str(value), LONGEST_TEXT)
