"""The charts of a sweep: a metric against the values of its key."""

from typing import Any

from fedddpm_app.compare.looks import Results, row_looks
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
    level = {each["row"] for each in results["settings"] if not each["sweep"]}
    looks = {
        name: (look.color, "--" if name in level else "-") for name, look in row_looks(results).items() if name in named
    }
    spec = over_values(rows, looks, sweep["key"], sweep["values"], metric)
    return [Chart(f"{metric} over {sweep['key']}: {condition}", alt, spec, table, wide=False)]


def _line(results: Results, metric: str, condition: str, name: str) -> list[dict[str, Any]]:
    """Return the means of a row with their intervals, for the values that it has."""
    settings = [each for each in results["settings"] if (each["row"], each["condition"]) == (name, condition)]
    by_value = {next(iter(each["sweep"].values()), None): each["metrics"].get(metric) for each in settings}
    found = []
    for value in results["grid"]["sweep"]["values"]:
        measured = by_value.get(value, by_value.get(None))
        if measured and measured["mean"] is not None:
            limits = {key: measured[key] for key in ("low", "high") if measured[key] is not None}
            found.append({"series": name, "at": value, "value": measured["mean"], **limits})
    return found
