"""Charts of a report, by Altair: the same data and colours as the run's plots, with values under the pointer.

Texts of a run are only data.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from fedddpm_app.compare.sweep import are_numbers
from fedddpm_app.recording.curves import WIDE
from fedddpm_app.recording.style import HEAT_MAP
from fedddpm_app.report.encodings import HEIGHT, colour_scale, finished, legend, tips

_DASHES: Mapping[str, list[int]] = {"-": [1, 0], "--": [6, 4], ":": [2, 3], "-.": [6, 3, 2, 3]}
_FEW_ROUNDS = 8
_MANY = 60  # points of a line: with more, only those under the pointer are marked
Row = Mapping[str, Any]


def over_rounds(
    rows: Sequence[Row],
    looks: Mapping[str, tuple[str, str]],
    unit: str,
    *,
    marks: Sequence[Row] = (),
    limits: tuple[float, float] | None = None,
    small: bool = False,
) -> dict[str, Any]:
    """Return the lines of one or more series over the rounds, or another cost that the reader chooses.

    Parameters
    ----------
    rows : sequence of mapping
        ``round``, ``steps``, ``mb``, ``series``, ``value``; with ``low`` and ``high`` a line has a band.
    looks : mapping of str to (str, str)
        The colour and Matplotlib's line style of each series, in the order of the legend.
    unit : str
        The title of the y axis.
    marks : sequence of mapping
        Rows as above without a value, with ``label``: events that are marked at the lower edge.
    limits : (float, float), optional
        Of the y axis; what is outside is cut off. Values that are far apart get a logarithmic axis.
    small : bool
        Whether it shares its row of the page with others.
    """
    names = [name for name in looks if any(row["series"] == name for row in rows)]
    scale, rows = _scaled(rows, limits)
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=_rounds([row["round"] for row in rows]),
        y=alt.Y("value:Q", title=unit, scale=scale),
        color=alt.Color("series:N", scale=colour_scale({name: looks[name][0] for name in names}), legend=legend(names)),
        tooltip=tips("series:N", "value:Q", "round:Q", "steps:Q", "mb:Q"),
    )
    each = max((sum(row["series"] == name for row in rows) for name in names), default=0)
    layers = [
        *([_band(base)] if any("low" in row for row in rows) else []),
        base.mark_line(clip=True, strokeWidth=1.8).encode(_dashes(names, looks), tooltip=[]),
        base.mark_point(filled=True, clip=True, size=45, opacity=1 if each <= _MANY else 0),
        *([_events(marks)] if marks else []),
    ]
    return finished(alt.layer(*layers), small)


def over_values(
    rows: Sequence[Row], looks: Mapping[str, tuple[str, str]], key: str, values: Sequence[Any], unit: str
) -> dict[str, Any]:
    """Return the lines of one or more series over the values of a key.

    Parameters
    ----------
    rows : sequence of mapping
        ``at``, one of ``values``; ``series``, ``value``; with ``low`` and ``high`` a line has a band.
    looks : mapping of str to (str, str)
        The colour and Matplotlib's line style of each series, in the order of the legend.
    key : str
        The title of the x axis.
    values : sequence
        Of the key, in the order of the x axis. Positive numbers that are far apart get a logarithmic axis.
    unit : str
        The title of the y axis.
    """
    if are_numbers(values):
        across = alt.Scale(type="log", nice=False) if is_wide(values) else alt.Scale(zero=False, nice=False, padding=8)
        x = alt.X("at:Q", title=key, scale=across, axis=alt.Axis(values=list(values), format="~g"))
    else:
        x = alt.X("at:O", title=key, sort=list(values), axis=alt.Axis(labelAngle=0))
    scale, rows = _scaled(rows, None)
    base = alt.Chart(alt.Data(values=list(rows))).encode(
        x=x,
        y=alt.Y("value:Q", title=unit, scale=scale),
        color=alt.Color(
            "series:N",
            scale=colour_scale({name: look[0] for name, look in looks.items()}),
            legend=legend([*looks]),
        ),
        tooltip=[alt.Tooltip("at:N", title=key), *tips("series:N", "value:Q", "low:Q", "high:Q")],
    )
    lines = base.mark_line(clip=True, strokeWidth=1.8).encode(_dashes([*looks], looks), tooltip=[])
    points = base.mark_point(filled=True, clip=True, size=45, opacity=1)
    return finished(alt.layer(_band(base), lines, points), small=True)


def _rounds(rounds: Sequence[float]) -> alt.X:
    """Return an x axis with whole numbers: Vega divides one of few rounds into halves."""
    first, last = int(min(rounds, default=0)), int(max(rounds, default=0))
    few = {"values": list(range(first, last + 1))} if last - first < _FEW_ROUNDS else {}
    axis = alt.Axis(tickMinStep=1, format="~s", labelOverlap=True, **few)
    return alt.X("round:Q", title="round", axis=axis, scale=alt.Scale(zero=False, nice=False, padding=8))


def _dashes(names: Sequence[str], looks: Mapping[str, tuple[str, str]]) -> alt.StrokeDash:
    scale = alt.Scale(domain=list(names), range=[_DASHES.get(looks[name][1], [1, 0]) for name in names])
    return alt.StrokeDash("series:N", scale=scale, legend=legend(names))


def _band(base: alt.Chart) -> alt.Chart:
    """Return areas between ``low`` and ``high``."""
    band = base.transform_filter("isValid(datum.low)").mark_area(opacity=0.15, clip=True)
    return band.encode(y="low:Q", y2="high:Q", tooltip=[])


def _scaled(rows: Sequence[Row], limits: tuple[float, float] | None) -> tuple[alt.Scale, Sequence[Row]]:
    """Return the scale of the y axis, and the rows; a logarithmic axis has no band that reaches zero."""
    log = is_wide([row["value"] for row in rows if limits is None or row["value"] <= limits[1]])
    scale = alt.Scale(
        nice=limits is None and not log,  # which would add decades
        padding=6,
        **({"type": "log"} if log else {"zero": False}),
        **({"domain": limits} if limits else {}),
    )
    if not log:
        return scale, rows
    bands = ("low", "high")
    return scale, [{k: v for k, v in row.items() if k not in bands or row["low"] > 0} for row in rows]


def _events(marks: Sequence[Row]) -> Any:
    """Return triangles at the lower edge."""
    return (
        alt.Chart(alt.Data(values=list(marks)))
        .mark_point(shape="triangle-up", filled=True, size=70, color="var(--accent)", yOffset=-5)
        .encode(x="round:Q", y=alt.value("height"), tooltip=tips("label:N", "round:Q"))
    )


def bars(rows: Sequence[Row], unit: str, colours: Mapping[str, str], *, stacked: bool = True) -> dict[str, Any]:
    """Return bars, stacked or side by side; ``rows`` have ``where``, ``series``, ``rank``, ``value``, in order."""
    names = [name for name in colours if any(row["series"] == name for row in rows)]
    chart = (
        alt.Chart(alt.Data(values=list(rows)))
        .mark_bar()
        .encode(
            x=alt.X("where:N", title=None, sort=None, axis=alt.Axis(labelAngle=-40, labelOverlap=True, labelLimit=120)),
            y=alt.Y("value:Q", title=unit),
            color=alt.Color(
                "series:N",
                scale=colour_scale({name: colours[name] for name in names}),
                legend=legend(names, "square"),
            ),
            order=alt.Order("rank:Q"),
            tooltip=tips("where:N", "series:N", "value:Q"),
        )
    )
    if not stacked:
        chart = chart.encode(xOffset=alt.XOffset("series:N", sort=names), y=alt.Y("value:Q", title=unit, stack=None))
    return finished(chart, small=True)


def heat_map(rows: Sequence[Row], columns: Sequence[str], unit: str, *, written: bool) -> dict[str, Any]:
    """Return coloured cells of clients by classes, ``columns``; ``rows`` have ``across``, ``down``, ``value`` > 0."""
    angle = -60 if max(map(len, columns), default=0) > 3 else 0
    axes = {
        "x": alt.X(
            "across:N",
            title="class",
            sort=None,
            scale=alt.Scale(domain=list(columns)),
            axis=alt.Axis(labelAngle=angle, labelOverlap=True, orient="top", labelLimit=120),
        ),
        "y": alt.Y("down:N", title=None, sort=None, axis=alt.Axis(labelOverlap=True)),
    }
    base = alt.Chart(alt.Data(values=list(rows))).encode(**axes)
    most = max((row["value"] for row in rows), default=1)
    cells = base.mark_rect().encode(
        color=alt.Color(
            "value:Q",
            scale=alt.Scale(scheme=HEAT_MAP.lower(), domain=[0, most]),
            legend=None if written else alt.Legend(title=unit, orient="bottom", gradientLength=180),
        ),
        tooltip=tips("down:N", "across:N", "value:Q"),
    )
    texts = base.mark_text(fontSize=10).encode(
        text="value:Q",
        color=alt.condition(f"datum.value > {most * 0.45}", alt.value("white"), alt.value("black")),
    )
    height = max(120, min(900, 24 * len({row["down"] for row in rows})))
    return finished(alt.layer(cells, texts) if written else cells, small=False, height=height)


def intervals(rows: Sequence[Row], unit: str, colours: Mapping[str, str], lines: Sequence[Row]) -> dict[str, Any]:
    """Return a row per series with its seeds, mean and interval; ``lines`` are vertical lines with ``x``, ``label``.

    ``rows`` have ``series``, ``kind`` (``seed`` or ``mean``) and ``value``; a mean may have ``low`` and ``high``.
    Values that are far apart get a logarithmic axis, which cuts off an interval that reaches zero.
    """
    names, log = [*colours], is_wide([row["value"] for row in rows])
    shown = [row["value"] for row in rows] + [line["x"] for line in lines if line["x"] > 0 or not log]
    scale = alt.Scale(type="log", domain=[min(shown) / 1.3, max(shown) * 1.3]) if log else alt.Scale(zero=False)
    y = alt.Y("series:N", sort=names, title=None, axis=alt.Axis(labelLimit=170))
    shades = alt.Color("series:N", scale=colour_scale(colours))
    base = alt.Chart(alt.Data(values=list(rows))).encode(y=y, color=shades.legend(None))
    x = alt.X("value:Q", title=unit, scale=scale, axis=alt.Axis(format="~g"))
    means = base.transform_filter("datum.kind === 'mean'")
    range_tips = tips("series:N", "value:Q", "low:Q", "high:Q")
    layers = [
        alt.Chart(alt.Data(values=list(lines)))
        .mark_rule(strokeDash=[3, 3], color="var(--muted)", clip=True)
        .encode(x=alt.X("x:Q", title=unit, scale=scale), tooltip=tips("label:N", "x:Q")),
        base.transform_filter("datum.kind === 'seed'")
        .mark_point(filled=True, opacity=0.45)
        .encode(x=x, tooltip=tips("series:N", "value:Q", "seed:N")),
        means.transform_filter("isValid(datum.low)")
        .transform_calculate(low=f"max(datum.low, {min(shown) / 1.3 if log else -1e300})")
        .mark_rule(strokeWidth=1.6, clip=True)
        .encode(x=alt.X("low:Q", title=unit, scale=scale), x2="high:Q", tooltip=range_tips),
        means.mark_tick(thickness=2.5, size=16, clip=True).encode(x=x, tooltip=range_tips),
    ]
    return finished(alt.layer(*layers), small=False, height=max(80, 22 * len(names)))


def is_wide(values: Sequence[float]) -> bool:
    """Return whether values need a logarithmic axis."""
    return bool(values) and min(values) > 0 and max(values) > WIDE * min(values)


def scatter(rows: Sequence[Row], across: str, up: str, colours: Mapping[str, str]) -> dict[str, Any]:
    """Return a point per seed and a large one per mean; ``rows`` have ``series``, ``kind``, ``x`` and ``y``."""
    chart = (
        alt.Chart(alt.Data(values=list(rows)))
        .mark_point(filled=True)
        .encode(
            x=alt.X("x:Q", title=across, scale=alt.Scale(zero=False)),
            y=alt.Y("y:Q", title=up, scale=alt.Scale(zero=False)),
            color=alt.Color("series:N", scale=colour_scale(colours), legend=legend([*colours], "circle")),
            size=alt.condition("datum.kind === 'mean'", alt.value(150), alt.value(30)),
            opacity=alt.condition("datum.kind === 'mean'", alt.value(1), alt.value(0.5)),
            tooltip=tips("series:N", "kind:N", "x:Q", "y:Q"),
        )
    )
    return finished(chart, small=True, height=HEIGHT)
