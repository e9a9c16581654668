"""The losses and metrics of a run over its rounds, and the final metrics."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedddpm_app.recording.curves import LOSSES, QUANTITIES, flattens
from fedddpm_app.recording.style import FLOOR, GENERATED, REAL, class_labels
from fedddpm_app.report.blocks import Chart, Table, Text, cell
from fedddpm_app.report.charts import bars, over_rounds
from fedddpm_app.report.reading import Line, StoredRun, is_count, metrics_in, thinned

_PLACES = ("round", "gradient steps", "MB exchanged")
_MOST_LABELS, _MAX_CLASSES, _FEW_CLASSES = 4_000, 200, 12  # of the table; of the plot; of a small plot
_FEW_CLIENTS = 10  # whose table is open
_LOSS_UNIT = "denoising loss, mean over pixels"


def losses(run: StoredRun) -> list[Chart | Text]:
    """Return the chart of the denoising losses, with the corrections marked."""
    lines = [line for line in run.lines if any(line.number(key) is not None for key in LOSSES)]
    rows = [
        {**line.place, "series": curve.label, "value": value}
        for key, curve in LOSSES.items()
        for line in thinned([line for line in lines if line.number(key) is not None])
        if (value := line.number(key)) is not None
    ]
    if not rows:
        return [Text(["No loss is recorded yet."])]
    limits, note = _limits(rows)
    corrected = [line for line in run.rounds if line.number("correct/steps")]
    marks = [
        {**line.place, "label": f"corrected on D_aux, {cell(line.row['correct/steps'])} steps"}
        for line in thinned(corrected)
    ]
    looks = {curve.label: (curve.colour, curve.line) for curve in LOSSES.values()}
    spec = over_rounds(rows, looks, _LOSS_UNIT, marks=marks, limits=limits)
    keys = {key: curve.label for key, curve in LOSSES.items() if any(line.number(key) is not None for line in lines)}
    table = Table(
        [*_PLACES, *keys.values(), "corrected"],
        [
            [*_place(line), *(cell(line.number(key)) for key in keys), "yes" if line in corrected else ""]
            for line in lines
        ],
        "denoising loss",
    )
    last = {curve.label: row for curve in LOSSES.values() for row in rows if row["series"] == curve.label}
    ends = "; ".join(f"{name}: {cell(row['value'])} at round {row['round']}" for name, row in last.items())
    alt = f"Lines of the denoising loss over the rounds. Last values: {ends}. {len(corrected)} corrections."
    triangles = " Triangles mark rounds with a correction." if marks else ""
    return [Chart("Denoising loss", alt, spec, table, note=f"{note}{triangles}".strip())]


def _limits(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[float, float] | None, str]:
    """Return the limits of the losses after round 0 if that would flatten them, with the remark."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        curves.setdefault(row["series"], []).append((row["round"], row["value"]))
    if not flattens(curves):
        return None, ""
    later = [row["value"] for row in rows if row["round"]]
    pad = 0.05 * (max(later) - min(later)) or 0.05 * max(later)
    low = min(later) - pad if min(later) > pad else min(later) * 0.95
    most = max(row["value"] for row in rows)
    return (low, max(later) + pad), f"Round 0 (untrained) is above the plot: {cell(most)}."


def metrics_over_rounds(run: StoredRun) -> list[Chart]:
    """Return a small chart per metric of generated images, with the floor and its deviation."""
    by_name: dict[str, list[tuple[Line, dict[str, Any]]]] = {}
    for line in run.rounds:
        for metric in metrics_in(line.row.get("eval/metrics")):
            by_name.setdefault(metric["name"], []).append((line, metric))
    return [_metric(name, found) for name, found in by_name.items()]


def _metric(name: str, found: Sequence[tuple[Line, Mapping[str, Any]]]) -> Chart:
    rows: list[dict[str, Any]] = []
    for line, metric in thinned(found):
        value, floor, spread = (_finite(metric.get(key)) for key in ("value", "floor", "floor_std"))
        rows += [{**line.place, "series": "generated images", "value": value}] if value is not None else []
        if floor is not None:
            band = {"low": floor - (spread or 0.0), "high": floor + (spread or 0.0)}
            rows += [{**line.place, "series": "floor", "value": floor, **band}]
    better = {"lower": "↓ lower is better", "higher": "↑ higher is better"}.get(str(found[-1][1].get("better")), "")
    unit = QUANTITIES.get(name.partition("-")[0], "value")
    looks = {"generated images": (GENERATED, "-"), "floor": (FLOOR, "--")}
    values = [row["value"] for row in rows if row["series"] == "generated images"]
    about = found[-1][1]
    table = Table(
        [*_PLACES, "value", "floor", "± of the floor", "images", "sampler", "sampler steps"],
        [
            [*_place(line), *(cell(m.get(key)) for key in ("value", "floor", "floor_std", "n", "sampler", "steps"))]
            for line, m in found
        ],
        name,
    )
    ends = f" First {cell(values[0])}, last {cell(values[-1])}, floor {cell(about.get('floor'))}." if values else ""
    alt = f"Line of {name} of generated images over the rounds, with the floor of real images. {better}.{ends}"
    spec = over_rounds(rows, looks, unit, small=True)
    return Chart(f"{name} {better}", alt, spec, table, wide=False)


def final_metrics(run: StoredRun) -> list[Table | Text]:
    """Return the table of the final metrics with their floors, and the notes about them."""
    if not run.metrics:
        return []
    rows = [
        [
            metric["name"],
            cell(metric.get("value")),
            cell(metric.get("std")),
            cell(metric.get("floor")),
            cell(metric.get("floor_std")),
            str(metric.get("better", "")),
            cell(metric.get("n")),
            f"{cell(metric.get('reference_n'))} {cell(metric.get('reference'))}",
            f"{cell(metric.get('weights'))}, {cell(metric.get('sampler'))}, {cell(metric.get('steps'))} steps",
        ]
        for metric in run.metrics
    ]
    headings = ("metric", "value", "±", "floor", "± of the floor", "better", "images", "against", "generated by")
    notes: dict[str, list[str]] = {}
    for metric in run.metrics:
        if metric.get("note"):
            notes.setdefault(cell(metric["note"]), []).append(metric["name"])
    explained = [f"{', '.join(names)}: {note}" for note, names in notes.items()]
    floor = "The floor is the same metric of equally many real images, which a perfect generator reaches."
    return [Table(headings, rows, "Final model"), *_of_clients(run.metrics), Text([floor, *explained])]


def _of_clients(metrics: Sequence[Mapping[str, Any]]) -> list[Table | Text]:
    """Return the values of the clients' own models, of a run without a global model."""
    of_clients = {
        metric["name"]: dict(zip(map(cell, metric["client_names"]), metric["clients"], strict=False))
        for metric in metrics
        if isinstance(metric.get("clients"), list) and isinstance(metric.get("client_names"), list)
    }
    names = list(dict.fromkeys(name for values in of_clients.values() for name in values))
    if not names:
        return []
    body = [[name, *(cell(values.get(name)) for values in of_clients.values())] for name in names]
    note = "There is no global model: a value is the mean over the clients' own models, and its ± their deviation."
    return [Text([note]), Table(["", *of_clients], body, "Each client's own model", folded=len(names) > _FEW_CLIENTS)]


def classes(run: StoredRun) -> list[Chart]:
    """Return the class shares of generated and real images, from the metric ``class-tv``."""
    found = next((metric for metric in run.metrics if isinstance(metric.get("class_counts"), dict)), None)
    counts = found["class_counts"] if found else {}
    shares: dict[str, Any] = {name: counts.get(name) for name in ("generated", "real")}
    if not all(isinstance(each, list) and each and all(map(is_count, each)) for each in shares.values()):
        return []
    size = min(_MOST_LABELS, *(len(each) for each in shares.values()))
    given = run.data.get("data/classes")
    names = class_labels(given if isinstance(given, list) and all(isinstance(n, str) for n in given) else [], size)
    percent = {name: [100 * count / max(1, sum(each)) for count in each[:size]] for name, each in shares.items()}
    rows = [
        {"where": names[k], "series": name, "rank": rank, "value": round(percent[name][k], 3)}
        for k in range(min(size, _MAX_CLASSES))
        for rank, name in enumerate(percent)
    ]
    spec = bars(rows, "share of the images in %", {"generated": GENERATED, "real": REAL}, stacked=False)
    body = [[names[k], *(cell(percent[name][k]) for name in percent)] for k in range(size)]
    table = Table(["class", "generated, %", "real, %"], body, "shares of the classes")
    most = max(range(size), key=lambda k: abs(percent["generated"][k] - percent["real"][k]))
    alt = f"Bars of the classes of generated and of real images; they differ most for class {names[most]}."
    return [Chart("Classes of generated and real images", alt, spec, table, wide=size > _FEW_CLASSES)]


def _place(line: Line) -> list[str]:
    return [cell(line.round), cell(round(line.steps)), cell(round(line.mb, 3))]


def _finite(value: object) -> float | None:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if known else None  # type: ignore[arg-type]
