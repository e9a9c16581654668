"""The charts of a sweep: a metric against the values of its key."""

from typing import Any

from fedddpm_app.compare.looks import Results, row_looks
from fedddpm_app.compare.sweep import sweep_line, uses_key
from fedddpm_app.compare.table import conditions_of
from fedddpm_app.report.blocks import Chart, Table, cell
from fedddpm_app.report.charts import over_values


def sweep_charts(results: Results, metric: str) -> list[Chart]:
    """Return a chart per condition; a row that does not use the key is a level line. Empty without a sweep."""
    sweep = results["grid"]["sweep"]
    return [chart for condition in conditions_of(results) if sweep for chart in _chart(results, metric, condition)]


def _chart(results: Results, metric: str, condition: str) -> list[Chart]:
    sweep = results["grid"]["sweep"]
    rows = [row for name in row_looks(results) for row in _line(results, metric, condition, name)]
    if not rows:
        return []
    body = [[row["series"], *(cell(row.get(key)) for key in ("at", "value", "low", "high"))] for row in rows]
    table = Table(["row", sweep["key"], metric, "low", "high"], body, f"{metric}, {condition}")
    alt = f"Lines of {metric} over {sweep['key']}, {condition}: means over the seeds, with their 95 % intervals."
    named = {row["series"] for row in rows}
    looks = {
        name: (look.color, "-" if uses_key(results, name) else "--")
        for name, look in row_looks(results).items()
        if name in named
    }
    spec = over_values(rows, looks, sweep["key"], sweep["values"], metric)
    return [Chart(f"{metric} over {sweep['key']}: {condition}", alt, spec, table, wide=False)]


def _line(results: Results, metric: str, condition: str, name: str) -> list[dict[str, Any]]:
    """Return the means of a row with their intervals, for the values that it has."""
    found = []
    for value, measured in sweep_line(results, metric, condition, name):
        limits = {key: measured[key] for key in ("low", "high") if measured[key] is not None}
        found.append({"series": name, "at": value, "value": measured["mean"], **limits})
    return found
