"""The report of a comparison: its tables with intervals, the statements that follow, curves, samples and origin."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedddpm_app.compare.cells import Line
from fedddpm_app.compare.history import AXES, History, averaged, read_history
from fedddpm_app.compare.looks import Results, looks_of, values_of
from fedddpm_app.compare.notes import caveat_note, cell_name, clients_left_out, cost_note, measured_note
from fedddpm_app.compare.plan import RESULTS
from fedddpm_app.compare.publish import origin_of
from fedddpm_app.compare.reference import compared_to, floor_of, is_swept, limits_of, reference_mean
from fedddpm_app.compare.table import NOTE_ON_STATISTICS, cells_of, conditions_of, labels_of, sentences_of
from fedddpm_app.compare.trade_off import pairs_of
from fedddpm_app.config import ConfigError
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.recording.status import COMPLETED, is_locked
from fedddpm_app.report.blocks import Chart, Facts, Page, Picture, Section, Table, Text, cell
from fedddpm_app.report.charts import intervals, over_rounds, scatter
from fedddpm_app.report.pictures import Pictures
from fedddpm_app.report.reading import as_json, thinned, usable
from fedddpm_app.report.sweep import sweep_charts

_SAMPLES = "samples-*.png"
_MOST_SHEETS = 20
_MOST_POINTS = 3_000  # of all curves together; each has some 200 characters, in the plot and in its table


def comparison_page(folder: Path, *, refresh: int = 0) -> Page:
    """Return the report of a comparison's folder, also while it runs.

    Parameters
    ----------
    folder : Path
        With ``results.json`` and the cells' run directories; without these it has no curves.
    refresh : int
        Seconds after which a browser reads the file again while the comparison goes on; 0 = never.

    Raises
    ------
    ConfigError
        When ``results.json`` cannot be read.
    """
    path = folder / RESULTS
    try:
        results: dict[str, Any] = usable(read_object(path))
        return _page(folder, results, refresh)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} cannot be read ({error!r}): write it again by `fedddpm compare --no-run`."
        ) from error


def _page(folder: Path, results: Results, refresh: int) -> Page:
    metrics = [metric for metric in results["metrics"] if metric in results["measured"]]
    cells, done = results["cells"], sum(each["status"] == COMPLETED for each in results["cells"])
    goes_on = done < len(cells) and is_locked(folder)
    sections = [
        Section("result", "Result", _result(results, metrics, done)),
        *(Section(f"metric-{k}", metric, _metric(results, metric)) for k, metric in enumerate(metrics)),
        Section("curves", "Metrics over the rounds", _curves(folder, results, metrics), by_cost=True),
        Section("trade-off", "Trade-off", _trade_off(results)),
        Section("samples", "Samples of the first seed", _samples(folder)),
        Section("cells", "Cells", _cells(results, metrics)),
        Section("origin", "Origin and grid", _origin(results)),
    ]
    status = COMPLETED if done == len(cells) else "running" if goes_on else "incomplete"
    sizes = {"row": labels_of(results), "condition": conditions_of(results), "seed": results["seeds"]}
    names = ", ".join(f"{len(each)} {name}{'' if len(each) == 1 else 's'}" for name, each in sizes.items())
    summary = f"{names}: {done} of {len(cells)} cells are complete. Reference: {results['reference']}."
    return Page(results["title"] or results["name"], "comparison", status, summary, sections, refresh if goes_on else 0)


def _result(results: Results, metrics: list[str], done: int) -> list[Facts | Text]:
    hours = sum(each["wall_hours"] for each in results["sessions"])
    facts = Facts(
        [
            ("cells", f"{done} of {len(results['cells'])}", "complete"),
            ("seeds", cell(len(results["seeds"])), "per row and condition"),
            ("reference", str(results["reference"]), f"matched by {results['match']}"),
            ("machine time", f"{hours:,.1f} h", "of all commands together"),
        ]
    )
    statements = sentences_of(results, metrics[0]) if metrics else ["No cell is complete yet."]
    return [facts, Text(statements), Text([cost_note(results), NOTE_ON_STATISTICS])]


def _metric(results: Results, metric: str) -> list[Chart | Table | Text]:
    charts = [chart for condition in conditions_of(results) for chart in _claim(results, metric, condition)]
    heading, rows = cells_of(results, metric)
    dotted = "the floor" if is_swept(results) else "the mean of the reference, and the floor"
    how = (
        f"Points: seeds. Ticks: means. Lines: 95 % interval of the paired difference to {compared_to(results)}, drawn "
        "from its mean where both have the same seeds; a logarithmic axis cuts off what reaches zero. Dotted: "
        f"{dotted} (real images)."
    )
    is_first = metric == results["metrics"][0]  # whose statements stand at the top
    return [
        Text([measured_note(results, metric)]),
        *sweep_charts(results, metric),
        Text([how]),
        *charts,
        Table(heading, rows, f"{metric}: mean ± deviation over seeds (difference to {results['reference']}, 95 %)"),
        *([Text([caveats])] if (caveats := caveat_note(results, [metric])) else []),
        *([] if is_first else [Text(sentences_of(results, metric))]),
    ]


def _claim(results: Results, metric: str, condition: str) -> list[Chart]:
    """Return the seeds, means and intervals of the differences in one condition."""
    rows: list[dict[str, Any]] = []
    for label in labels_of(results):
        values = values_of(results, label, condition, metric)
        rows += [{"series": label, "kind": "seed", "value": value} for value in values]
        if values:
            low, high = limits_of(results, label, condition, metric) or (None, None)
            mean = sum(values) / len(values)
            rows.append({"series": label, "kind": "mean", "value": mean, "low": low, "high": high})
    if not rows:
        return []
    colours = {label: look.color for label, look in looks_of(results).items()}
    body = [[row["series"], row["kind"], *(cell(row.get(key)) for key in ("value", "low", "high"))] for row in rows]
    table = Table(["row", "", metric, "low", "high"], body, f"{metric}, {condition}")
    means = {row["series"]: row["value"] for row in rows if row["kind"] == "mean"}
    alt = f"{metric}, {condition}: means {', '.join(f'{name} {cell(value)}' for name, value in means.items())}."
    spec = intervals(rows, metric, colours, _lines(results, metric, condition))
    return [Chart(f"{metric}: {condition}", alt, spec, table, wide=False)]


def _lines(results: Results, metric: str, condition: str) -> list[dict[str, Any]]:
    """Return the mean of the reference, and the floor."""
    known = {f"mean of {results['reference']}": reference_mean(results, metric, condition)}
    known |= {"floor": floor_of(results, metric, condition)}
    return [{"x": x, "label": label} for label, x in known.items() if x is not None]


def _curves(folder: Path, results: Results, metrics: list[str]) -> list[Chart]:
    """Return the metrics over the rounds of each condition, the mean over the seeds that are on this disk."""
    charts = []
    looks = {label: (look.color, look.linestyle) for label, look in looks_of(results).items()}
    most = max(20, _MOST_POINTS // max(1, len(looks) * len(metrics) * len(conditions_of(results))))
    for metric in metrics:
        for condition in conditions_of(results):
            curves = [_curve(label, _histories(folder, results, label, condition, metric)) for label in looks]
            rows = [row for curve in curves for row in thinned(curve, most)]
            if not rows:
                continue
            keys = (*AXES, "value", "low", "high")
            body = [[row["series"], *(cell(row.get(key)) for key in keys)] for row in rows]
            table = Table(["row", *AXES.values(), metric, "low", "high"], body, f"{metric}, {condition}")
            alt = f"Lines of {metric} over the rounds, {condition}: the mean over the seeds, with a deviation."
            title = f"{metric}: {condition}"
            spec = over_rounds(rows, looks, metric, small=True)
            charts.append(Chart(title, alt, spec, table, wide=False))
    return charts


def _histories(folder: Path, results: Results, label: str, condition: str, metric: str) -> list[History]:
    """Return the histories of a line's complete seeds that have the metric, measured as in the other cells."""
    found = []
    for each in results["cells"]:
        if (each["label"], each["condition"]) == (label, condition) and metric in each.get("metrics", ()):
            line = Line(each["row"], *next(iter(each["sweep"].items()), ()))
            directory = folder / line.folder / condition / f"seed-{each['seed']}"
            if directory.resolve().is_relative_to(folder.resolve()):  # the names may come from somewhere else
                found.append(read_history(directory, metric))
    return found


def _curve(label: str, histories: list[History]) -> list[dict[str, Any]]:
    return [
        {
            "series": label,
            **{axis: round(getattr(point, axis), 4) for axis in AXES},
            "value": point.value,
            "low": point.value - spread,
            "high": point.value + spread,
        }
        for point, spread in averaged(histories)
        if math.isfinite(point.value)
    ]


def _trade_off(results: Results) -> list[Chart]:
    """Return the first metric against each metric of ``trade_off``."""
    charts = []
    colours = {label: look.color for label, look in looks_of(results).items()}
    for other in results.get("trade_off") or []:
        for condition in conditions_of(results):
            rows: list[dict[str, Any]] = []
            for label in colours:
                pairs = pairs_of(results, label, condition, other)
                rows += [{"series": label, "kind": "seed", "x": x, "y": y} for x, y in pairs]
                if pairs:
                    x, y = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
                    rows.append({"series": label, "kind": "mean", "x": x, "y": y})
            if rows:
                metric = results["metrics"][0]
                body = [[row["series"], row["kind"], cell(row["x"]), cell(row["y"])] for row in rows]
                table = Table(["row", "", other, metric], body, f"{metric} against {other}")
                alt = f"Points of {metric} against {other}, {condition}; small ones are seeds, large ones means."
                spec = scatter(rows, other, metric, colours)
                charts.append(Chart(f"{metric} against {other}: {condition}", alt, spec, table, wide=False))
    return charts


def _samples(folder: Path) -> list[Picture | Text]:
    pictures = Pictures(folder)
    found: list[Picture | Text] = []
    for path in sorted(folder.glob(_SAMPLES))[:_MOST_SHEETS]:
        name = path.stem.removeprefix("samples-")
        found += pictures.read(
            path, name, f"Images of each row's final model, {name}; a row per row of the grid.", wide=True
        )
    return [*found, *([Text([f"Not shown: {'; '.join(pictures.left_out)}."])] if pictures.left_out else [])]


def _cells(results: Results, metrics: list[str]) -> list[Table | Text]:
    rows: list[list[str]] = [
        [
            cell_name(each),
            str(each["status"]),
            *(cell(each.get("metrics", {}).get(metric, {}).get("value")) for metric in metrics),
            *(cell(each.get(key)) for key in ("steps", "up_mb", "down_mb", "seconds")),
            cell(each["reason"]) if each.get("reason") else "",
        ]
        for each in results["cells"]
    ]
    headings = ["cell", "status", *metrics, "gradient steps", "MB up", "MB down", "seconds", "reason"]
    unequal = clients_left_out(results)
    notes: list[Table | Text] = [Text([f"Cells without some clients: {'; '.join(unequal)}."])] if unequal else []
    return [*notes, Table(headings, rows, f"All {len(rows)} cells", folded=True)]


def _origin(results: Results) -> list[Table | Text]:
    grid: Mapping[str, Any] = results["grid"]
    parts = {"base": ("key", "value"), "rows": ("row", "its keys"), "conditions": ("condition", "its keys")}
    titles = {"base": "Keys of all cells", "rows": "Rows", "conditions": "Conditions"}
    tables = [
        Table(headings, [[name, as_json(value)] for name, value in (grid.get(part) or {}).items()], titles[part])
        for part, headings in parts.items()
    ]
    return [Text([origin_of(results, "results").partition(" Everything:")[0]]), *tables]
