"""The look of all pictures of a run: one palette, one font, plain numbers, and texts that are never markup.

A text is drawn as it is: ``$`` and ``_`` are ordinary characters. A character that no installed font can draw does not
become an empty box: see ``printable``.
"""

import functools
import math
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib import font_manager, style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from fedddpm_app.disk.durable import replacing

# Okabe and Ito's palette, which colour-blind readers can tell apart, with darker colours where theirs are too light for
# lines. In the pictures of a run, a colour has one meaning: whose data or model, or what kind of image.
CLIENTS, SERVER, TEST, OTHERS = "#0072B2", "#D55E00", "#009E73", "#E69F00"  # others: what a peer takes from another
GENERATED, REAL, FLOOR = "#882255", "#8C8C8C", "#4D4D4D"
WARNING = "#C00000"
HEAT_MAP = "Blues"
# Of the rows of a comparison and of the targets of an audit. Markers and dashes differ as well, for prints in grey.
SERIES = (
    *("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#56B4E9", "#E69F00", "#882255", "#999933", "#7F4F24"),
)
LINES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*Xdph<>"

DPI = 120
_CHARACTERS_PER_INCH = 13  # of a title
_MAX_MARKS = 20  # on a curve; more would hide it
_MAX_NAME = 24  # characters of a class name
_LARGEST = 1e100  # Matplotlib has no axis up to the largest floats
_FONTS = (
    "DejaVu Sans",  # part of matplotlib
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR", "WenQuanYi Zen Hei"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Bengali", "Arial Unicode MS"),
)


@contextmanager
def open_figure(path: Path, title: str, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure with a title, and write it as a PNG; equal content gives equal bytes.

    Parameters
    ----------
    path : Path
        The PNG; its folder is created.
    title : str
        At the top left.
    width, height : float
        Inches, ``DPI`` pixels each.
    """
    settings = {
        "font.family": [*_font_files()],
        "text.parse_math": False,
        "axes.formatter.useoffset": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "axes.titlelocation": "left",
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.alpha": 0.3,
        "legend.fontsize": 9,
        "figure.titlesize": 11,
    }
    with style.context(["default", settings]):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(_wrapped(title, width), x=0.01, ha="left")
        yield figure
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as work:  # and not through a link
            figure.savefig(work, format="png", dpi=DPI, metadata={"Software": None})


def _wrapped(title: str, width: float) -> str:
    """Break the lines of a title that are longer than the figure, in inches, is wide."""
    return "\n".join(textwrap.fill(line, int(width * _CHARACTERS_PER_INCH)) for line in title.split("\n"))


def count_rounds(axes: Axes, rounds: Sequence[int]) -> None:
    """Label the x axis with whole rounds; a single round is in the middle."""
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if rounds and min(rounds) == max(rounds):
        axes.set_xlim(rounds[0] - 1, rounds[0] + 1)
        axes.set_xticks([rounds[0]])


def mark_every(count: int) -> int:
    """Return k: a curve of ``count`` points is marked at every k-th."""
    return max(1, -(-count // _MAX_MARKS))


def plain_log_axis(axes: Axes, which: Literal["x", "y"] = "y", *, short: bool = False) -> None:
    """Make an axis logarithmic, with decimals such as 0.05 instead of powers of ten; a short one has more of them."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.yaxis if which == "y" else axes.xaxis
    axis.set_major_locator(LogLocator(subs=range(1, 10) if short else (1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.10g}"))
    axis.set_minor_formatter(NullFormatter())


def number(value: object) -> float:
    """Return a number of ``stats.jsonl``; NaN for null, for all that is not a number, and for one too large to plot."""
    return float(value) if isinstance(value, int | float) and abs(value) < _LARGEST else math.nan


def printable(text: str, limit: int = _MAX_NAME) -> str | None:
    """Return a text on one line, with its middle left out if it is long; None if no font has all of its characters."""
    words = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    if len(words) > limit:
        tail = (limit - 1) // 2
        words = f"{words[: limit - 1 - tail].rstrip()}…{words[-tail:].lstrip()}"
    known = all(any(ord(c) in _characters_of(file) for file in _font_files().values()) for c in words)
    return words if words and known else None


def class_labels(class_names: Sequence[str], count: int) -> list[str]:
    """Return ``count`` class names for a picture; a class without a printable name has its number, such as ``#3``.

    Where names are just the numbers, they stay as they are. Names that look the same when shortened get their number.
    """
    given = [printable(class_names[k]) if k < len(class_names) else str(k) for k in range(count)]
    names = [f"#{k}" if name is None else name for k, name in enumerate(given)]
    times = Counter(names)
    return [f"{name} #{k}" if times[name] > 1 else name for k, name in enumerate(names)]


def font_file(text: str) -> str:
    """Return the first font that has all characters of a printable text; the main font if there is none."""
    files = list(_font_files().values())
    return next((file for file in files if all(ord(c) in _characters_of(file) for c in text)), files[0])


@functools.cache
def _font_files() -> dict[str, str]:
    """Return the installed fonts of ``_FONTS``, name to file; the first is matplotlib's own file."""
    installed = {font.name: font.fname for font in reversed(font_manager.fontManager.ttflist)}
    installed[_FONTS[0]] = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    return {name: installed[name] for name in _FONTS if name in installed}


@functools.cache
def _characters_of(file: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(file).get_charmap())
