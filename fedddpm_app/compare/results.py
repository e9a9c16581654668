"""The results of a grid: every cell, and every setting over its seeds, with its differences to others."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fedddpm_app.compare.cells import Cell, Setting
from fedddpm_app.compare.history import read_left_out, read_seconds
from fedddpm_app.compare.notes import DIVERGED, LEFT_OUT, clients_left_out
from fedddpm_app.compare.plan import RESULTS, Plan
from fedddpm_app.compare.shared import OF_GRID, source_of
from fedddpm_app.compare.statistics import deviation, interval, paired_difference
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.evaluation.metrics import CAVEAT, OF_THE_FLOOR
from fedddpm_app.recording.layout import CONFIG
from fedddpm_app.recording.status import COMPLETED, Status, read_status

_OF_A_METRIC = ("value", "std", "median", "floor", "floor_std", "note")  # ``measured`` has the rest
_SPLITS = ("test", "train")
_COPIES = "memorized-share"  # its training images are those of the clients
_DIGESTS = ("extractor_digest", "reference_digest")
_GENERATED = ("n", "sampler", "steps")
_HOW = ("extractor", "extractor_digest", "reference", "reference_n", "reference_digest", *_GENERATED)
_SIZES_OF_FLOOR = ("floor_n", "floor_reference_n")
_COSTS = {"steps": "compute/steps", "up_mb": "comm/up_mb", "down_mb": "comm/down_mb"}
_EVALUATION = "comm/evaluation_mb"  # runs whose evaluation needs no client lack it


def collect(plan: Plan, failed: Mapping[Cell, str]) -> dict[str, Any]:
    """Return the results of all cells so far, for ``results.json``.

    Parameters
    ----------
    plan : Plan
        The grid.
    failed : mapping of Cell to str
        The reasons of the cells that did not complete.

    Returns
    -------
    dict
        ``cells``: a dict per cell; ``settings``: a dict per line and condition, with ``metrics`` by name;
        ``measured``: how the first cell's metrics were measured, with ``others``, the other numbers of images,
        samplers and steps; ``measured_otherwise``: the cells that have no value of a metric, because their digests are
        others than those of the first cell; ``commits``: of the cells.
    """
    statuses = {cell: read_status(cell.directory) for cell in plan.cells}
    cells = {cell: _of_cell(cell, status, failed.get(cell, "")) for cell, status in statuses.items()}
    left_out = _leave_out_other_measures(cells, statuses)
    by_setting: dict[Setting, dict[int, dict[str, Any]]] = {}
    for cell, found in cells.items():
        if found["status"] == COMPLETED:
            by_setting.setdefault(cell.setting, {})[cell.seed] = found
    commits = dict.fromkeys(commit for found in cells.values() for commit in found.get("git_commits", ()) if commit)
    return {
        "measured": _measured(cells, statuses),
        "measured_otherwise": left_out,
        "settings": [_of_setting(plan, setting, by_setting) for setting in plan.settings],
        "cells": list(cells.values()),
        "commits": list(commits),
    }


def _of_cell(cell: Cell, status: Status, reason: str) -> dict[str, Any]:
    """Return a cell's status, and its metrics and costs if it is complete."""
    found: dict[str, Any] = {**_names(cell.setting), "seed": cell.seed, "status": status.state}
    if status.state != COMPLETED:
        return found | ({"reason": reason} if reason else {})
    found |= {name: status.summary.get(key) for name, key in _COSTS.items()}
    found["evaluation_mb"] = status.summary.get(_EVALUATION, 0.0)
    found["seconds"] = round(read_seconds(cell.directory), 1)
    metrics = {
        name: {key: metric[key] for key in _OF_A_METRIC if metric.get(key) not in (None, "")}
        for name, metric in metrics_of(status).items()
    }
    starts = [about := _about(cell), *about.get("resumed", [])]
    commits = list(dict.fromkeys(start.get("git_commit") for start in starts))
    found |= {
        "metrics": metrics,
        "git_commits": commits,
        "git_clean": all(start.get("git_clean") is not False for start in starts),
    }
    left_out = read_left_out(cell.directory) | _diverged(metrics_of(status))
    found |= {LEFT_OUT: left_out} if left_out else {}
    return found | ({OF_GRID: source} if (source := source_of(cell.directory)) else {})


def _leave_out_other_measures(cells: Mapping[Cell, dict[str, Any]], statuses: Mapping[Cell, Status]) -> list[str]:
    """Remove metrics that were measured otherwise than in a condition's first cell, and return their names.

    Seeds may differ only in metrics whose real images depend on the seed: the training images of the clients, for
    copies, and those of an attack.
    """
    first: dict[tuple[str, int | None, str], list[object]] = {}
    left_out = []
    for cell, found in cells.items():
        for name, metric in metrics_of(statuses[cell]).items():
            digests = [metric.get(key) for key in _DIGESTS]
            seed = cell.seed if name.endswith(_COPIES) or metric.get("reference") not in _SPLITS else None
            expected = first.setdefault((cell.setting.condition, seed, name), digests)
            if digests != expected and found.get("metrics", {}).pop(name, None):
                left_out.append(f"{cell.name}: {name}")
    return left_out


def _measured(cells: Mapping[Cell, dict[str, Any]], statuses: Mapping[Cell, Status]) -> dict[str, dict[str, Any]]:
    """Return how the metrics were measured in the first cell, and in ``others`` how else images were generated."""
    measured: dict[str, dict[str, Any]] = {}
    for cell, found in cells.items():
        metrics = metrics_of(statuses[cell])
        for name in found.get("metrics", ()):
            how = {key: metrics[name].get(key) for key in (*_HOW, *_SIZES_OF_FLOOR, "better")}
            about = measured.setdefault(name, {**how, "others": []})
            generated = {key: how[key] for key in _GENERATED}
            if generated not in ({key: about[key] for key in _GENERATED}, *about["others"]):
                about["others"].append(generated)
    return measured


def _names(setting: Setting) -> dict[str, Any]:
    value = {} if setting.line.value is None else {setting.line.key: setting.line.value}
    return {"row": setting.line.row, "label": setting.line.label, "sweep": value, "condition": setting.condition}


def _about(cell: Cell) -> dict[str, Any]:
    try:
        return read_object(cell.directory / CONFIG)
    except (OSError, ValueError):
        return {}


def metrics_of(status: Status) -> dict[str, dict[str, Any]]:
    """Return the metrics of a run's final evaluation by name; empty before its end."""
    found = status.summary.get("metrics")
    metrics = found if isinstance(found, list) else []
    return {metric["name"]: metric for metric in metrics if isinstance(metric, dict) and "name" in metric}


def _diverged(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the clients whose models generate no finite images, as a phase without them."""
    lists = [names for metric in metrics.values() if isinstance(names := metric.get(LEFT_OUT), list)]
    clients = dict.fromkeys(_client_of(name) for names in lists for name in names if isinstance(name, str))
    return {DIVERGED: [*clients]} if clients else {}


def _client_of(name: str) -> str:
    """Return the number in the name of a client's model, as the phases name clients."""
    return str(int(number)) if (number := name.rpartition("-")[2]).isdecimal() else name


def _of_setting(
    plan: Plan, setting: Setting, by_setting: Mapping[Setting, Mapping[int, Mapping[str, Any]]]
) -> dict[str, Any]:
    """Return the means over the seeds of a setting, and the differences to the rows that it is compared with."""
    cells = by_setting.get(setting, {})
    compared = {name: by_setting.get(other, {}) for name, other in plan.compared_with(setting).items()}
    names = dict.fromkeys(name for cell in cells.values() for name in cell["metrics"])
    metrics = {}
    whole = {row: _of_all_clients(found) for row, found in compared.items()}
    for name in names:
        values, others = _values(cells, name), {row: _values(found, name) for row, found in whole.items()}
        own = _values(_of_all_clients(cells), name)
        mean = interval(list(values.values()))
        metrics[name] = {
            **asdict(mean),
            "sd": deviation(list(values.values())),
            "floor": interval(list(_values(cells, name, "floor").values())).mean,
            "floor_std": interval(list(_values(cells, name, "floor_std").values())).mean,
            "caveats": _caveats(cells, name),
            "differences": {row: asdict(paired_difference(own, other)) for row, other in others.items() if other},
        }
    costs = {
        name: interval([_number(cell[name]) for cell in cells.values()]).mean
        for name in (*_COSTS, "evaluation_mb", "seconds")
    }
    return {
        **_names(setting),
        "n": len(cells),
        "metrics": metrics,
        "solved": dict(setting.solved),
        "expected": {**asdict(setting.cost), "budget": setting.budget},
        **costs,
    }


def _of_all_clients(cells: Mapping[int, Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """Return the cells whose metrics are of all clients' models: without the worst, a mean would only look better."""
    return {seed: cell for seed, cell in cells.items() if DIVERGED not in cell.get(LEFT_OUT, {})}


def _caveats(cells: Mapping[int, Mapping[str, Any]], name: str) -> dict[str, int]:
    """Return the caveats about a metric's values, without their numbers, with the number of seeds that have them."""
    found: Counter[str] = Counter()
    for cell in cells.values():
        caveats = str(cell["metrics"].get(name, {}).get("note", "")).split(CAVEAT)
        shorts = (caveat.partition(":")[0].partition(" (")[0] for caveat in caveats)
        found.update({short for short in shorts if short and not short.startswith(OF_THE_FLOOR)})
    return dict(sorted(found.items()))


def _values(cells: Mapping[int, Mapping[str, Any]], name: str, key: str = "value") -> dict[int, float]:
    """Return a metric's finite values by seed."""
    values = {seed: _number(cell["metrics"].get(name, {}).get(key)) for seed, cell in cells.items()}
    return {seed: value for seed, value in values.items() if math.isfinite(value)}


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def problems_of(plan: Plan, results: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each metric of the table that no cell has, and for cells that measured otherwise."""
    known: Sequence[str] = list(results["measured"])
    left_out: Sequence[str] = results["measured_otherwise"]
    otherwise = (
        f"left out, because the digests of their measurement differ from those of the first cell: {len(left_out)} "
        f"metrics, such as {left_out[0] if left_out else ''}; {RESULTS} lists them. If the cells ran on different "
        "machines, their extractors differ: run the grid with --restore of a published one, or anew."
    )
    incomplete = "; ".join(clients_left_out(results))
    without = f"without some clients, for reasons in the cells' logs: {incomplete}"
    return (
        ([otherwise] if left_out else [])
        + ([without] if incomplete else [])
        + [
            f"metrics: {name} is not among the final metrics of the cells; they have {', '.join(known)}."
            for name in plan.spec.metrics
            if known and name not in known
        ]
    )
