"""What the charts of a report share: their size, colours, legends and tooltips.

Colours are CSS variables where they must differ between light and dark pages.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

HEIGHT, SMALL_HEIGHT = 280, 190
_CHANGING = {  # the colours that are too dark for a dark page
    "#000000": "var(--ink)",
    "#4D4D4D": "var(--muted)",
    "#8C8C8C": "var(--grey)",
    "#882255": "var(--wine)",
    "#7F4F24": "var(--brown)",
    "#0072B2": "var(--blue)",
}


def colour(name: str) -> str:
    """Return a colour of a plot for a page that is light or dark."""
    return _CHANGING.get(name, name)


def colour_scale(colours: Mapping[str, str]) -> alt.Scale:
    """Return the scale that gives each series its colour."""
    return alt.Scale(domain=[*colours], range=[*map(colour, colours.values())])


def legend(names: Sequence[str], symbol: str = "stroke") -> alt.Legend | None:
    """Return the legend of some series; one alone has none."""
    if len(names) < 2:
        return None
    return alt.Legend(title=None, orient="bottom", columns=2, labelLimit=260, symbolType=symbol, symbolOpacity=1)


def tips(*fields: str) -> list[alt.Tooltip]:
    """Return what the pointer shows; numbers have 4 significant digits."""
    names = {"steps": "gradient steps", "mb": "MB exchanged", "where": "", "across": "class", "down": "client"}
    return [
        alt.Tooltip(each, title=names.get(each[:-2], each[:-2]), **({"format": ",.4~g"} if each.endswith(":Q") else {}))
        for each in fields
    ]


def finished(chart: Any, small: bool, height: int | None = None) -> dict[str, Any]:
    """Return the specification, as wide as the page."""
    sized = chart.properties(width="container", height=height or (SMALL_HEIGHT if small else HEIGHT))
    spec: dict[str, Any] = sized.to_dict(validate=False)  # which takes most of the time; a browser test draws them
    return spec
