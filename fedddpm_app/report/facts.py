"""Who holds which images, what the rounds cost, and what went wrong."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from fedddpm_app.config import one_line
from fedddpm_app.federation import security_log as log
from fedddpm_app.recording.style import CLIENTS, FLOOR, SERIES, SERVER, TEST, class_labels
from fedddpm_app.report.blocks import Chart, Facts, Table, Text, cell
from fedddpm_app.report.charts import bars, heat_map
from fedddpm_app.report.reading import StoredRun, is_count, objects_in, thinned

_MAX_CELLS = 4_000  # of a heat map: more are sizes only
_MAX_WRITTEN = 300  # cells with their counts
_MAX_BARS = 60
_TIMES = {  # the parts of a round's or phase's time, in the order of their colours
    "train": CLIENTS,
    "pretrain": SERIES[5],
    "auxiliary": SERIES[6],
    "correct": SERVER,
    "evaluate": SERIES[4],
    "server-evaluate": TEST,
    "final-evaluate": TEST,
}
_REFUSALS = (log.REPLY_REFUSED, log.DECLINED, log.NODE_REFUSED, log.CLAIM_REFUSED, log.WITHHELD, log.LEFT)


def holders(run: StoredRun) -> list[Chart | Text]:
    """Return the clients' training images per class."""
    counts, sizes, given = (run.data.get(f"data/{key}") for key in ("label_counts", "num_examples", "classes"))
    if not isinstance(sizes, list) or not sizes or not all(map(is_count, sizes)):
        return [Text(["The clients' images are not recorded."])]
    table_of: Any = counts if _is_table(counts, len(sizes)) else [[size] for size in sizes]
    classes = len(table_of[0])
    total = f"{sum(sizes):,} training images on {len(sizes):,} clients"
    unassigned = run.data.get("data/num_unassigned") or 0
    rest = f" {cell(unassigned)} images belong to no client." if unassigned else ""
    about = f"{total}.{rest}"
    if len(sizes) * classes > _MAX_CELLS:
        return [_sizes(sizes, about)]
    has_names = isinstance(given, list) and all(isinstance(name, str) for name in given)
    names = class_labels(given, classes) if has_names and given else ["images"] * classes
    return [_map(table_of, sizes, names, about)]


def _sizes(sizes: Sequence[int], about: str) -> Chart:
    rows = [{"where": f"{k}", "series": "images", "value": size, "rank": 0} for k, size in enumerate(sizes)]
    spec = bars(thinned(rows), "training images", {"images": CLIENTS})
    note = f"{about} There are too many cells for a map of the classes."
    table = Table(["client", "images"], [[str(k), cell(size)] for k, size in enumerate(sizes)], "images per client")
    return Chart("Training images per client", f"Bars of the clients' sizes: {about}", spec, table, note=note)


def _map(counts: Sequence[Sequence[int]], sizes: Sequence[int], names: Sequence[str], about: str) -> Chart:
    cells = [
        {"across": names[k], "down": f"client {client}", "value": count}
        for client, each in enumerate(counts)
        for k, count in enumerate(each)
        if count
    ]
    spec = heat_map(cells, names, "images", written=len(sizes) * len(names) <= _MAX_WRITTEN)
    held = [sum(bool(count) for count in each) for each in counts]
    alt = f"Map of clients by classes: {about} A client holds {min(held)} to {max(held)} of {len(names)} classes."
    body = [[f"client {k}", *map(cell, each), cell(sizes[k])] for k, each in enumerate(counts)]
    table = Table(["", *names, "all"], body, "training images per client and class")
    return Chart("Training images per client and class", alt, spec, table, note=about)


def _is_table(counts: object, clients: int) -> bool:
    """Return whether there is a list of counts per client, all of one length."""
    rows = counts if isinstance(counts, list) and len(counts) == clients else []
    is_row = [isinstance(row, list) and row and len(row) == len(rows[0]) and all(map(is_count, row)) for row in rows]
    return bool(is_row) and all(is_row)


def costs(run: StoredRun) -> list[Facts | Chart]:
    """Return the bytes and the seconds of each phase and round."""
    lines = [line for line in run.lines if any(key.startswith(("comm/", "time/")) for key in line.row)]
    if not lines:
        return []
    shown = thinned(lines) if len(lines) > _MAX_BARS else lines
    ways = {"from the clients": "comm/up_mb", "to the clients": "comm/down_mb", "evaluation": "comm/evaluation_mb"}
    moved = [
        {"where": line.name, "series": name, "value": line.number(key) or 0.0, "rank": rank}
        for line in shown
        for rank, (name, key) in enumerate(ways.items())
        if line.number(key)
    ]
    parts = list(dict.fromkeys(key for line in lines for key in line.row if _is_part(key)))
    spent = [
        {"where": line.name, "series": _part(key), "value": line.number(key) or 0.0, "rank": rank}
        for line in shown
        for rank, key in enumerate(parts)
        if line.number(key)
    ]
    totals = {key: sum(line.number(key) or 0.0 for line in lines) for key in (*ways.values(), *parts)}
    facts = _totals(run, totals)
    table = Table(
        ["", *ways, *(f"{_part(key)}, s" for key in parts)],
        [[line.name, *(cell(line.number(key)) for key in (*ways.values(), *parts))] for line in lines],
        "MB and seconds",
    )
    colours = {"from the clients": CLIENTS, "to the clients": SERIES[5], "evaluation": SERIES[4]}
    rest = cycle((SERIES[5], SERIES[6], SERIES[4], FLOOR))  # for the phases of other algorithms
    named = {_part(key): _TIMES.get(_part(key)) or next(rest) for key in parts}
    alt_mb = f"Bars of the MB per phase and round, in all {cell(sum(totals[key] for key in ways.values()))} MB."
    alt_s = f"Bars of the seconds per phase and round: {', '.join(f'{_part(k)} {cell(totals[k])} s' for k in parts)}."
    return [
        facts,
        Chart("Communication", alt_mb, bars(moved, "MB", colours), table, wide=False),
        Chart("Time", alt_s, bars(spent, "seconds", named), table, wide=False),
    ]


def _totals(run: StoredRun, totals: Mapping[str, float]) -> Facts:
    """Return the cost of the whole run."""
    directions = {
        "comm/up_mb": ("from the clients", ""),
        "comm/down_mb": ("to the clients", ""),
        "comm/evaluation_mb": ("for evaluation", "models sent for evaluation alone; not in the MB above"),
    }
    moved = [
        (name, f"{cell(totals[key])} MB", note)
        for key, (name, note) in directions.items()
        if totals[key] or key != "comm/evaluation_mb"
    ]
    steps = ("gradient steps", cell(round(run.lines[-1].steps)), "as counted by the run")
    return Facts([steps, *moved, ("time", _minutes(run.status.summary.get("time/total_s")), "with evaluation")])


def _is_part(key: str) -> bool:
    return key.startswith("time/") and key not in ("time/round_s", "time/phase_s")


def _part(key: str) -> str:
    return one_line(key.removeprefix("time/").removesuffix("_s"))


def _minutes(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "–"
    return f"{seconds / 60:,.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def faults(run: StoredRun) -> list[Table | Text]:
    """Return why the run ended, the clients that were left out, the refusals, and the warnings of the log."""
    summary = run.status.summary
    reasons = [
        f"{name}: {one_line(str(summary[key]))}"
        for key, name in (("error", "The run failed"), ("stopped_by", "It was stopped by"))
        if summary.get(key)
    ]
    left_out = [
        [line.name, key.partition("/")[0], f"client {client}", one_line(str(reason))]
        for line in run.lines
        for key in line.row
        if key.endswith("/left_out")
        for client, reason in line.by_client(key).items()
    ]
    events = [each for each in run.events if each.get("event") in _REFUSALS]
    counted = Counter((str(each["event"]), one_line(str(each.get("reason", "")))) for each in events)
    quiet = not (reasons or left_out or counted)
    blocks: list[Table | Text] = [Text(reasons or ["No client was left out, and nothing was refused."] * quiet)]
    if left_out:
        blocks.append(Table(["when", "phase", "client", "reason"], left_out, "Clients that were left out"))
    if counted:
        rows = [[event, cell(count), reason] for (event, reason), count in counted.most_common()]
        blocks.append(Table(["event", "times", "reason"], rows, "Refusals and departures, from security.jsonl"))
    if run.warnings:
        blocks.append(Table(["line"], [[line] for line in run.warnings], "Warnings of log.txt", folded=True))
    return blocks


def resumes(about: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    """Return a row for each time that the run was resumed."""
    return [[cell(each.get("after_round")), cell(each.get("changed"))] for each in objects_in(about.get("resumed"))]
