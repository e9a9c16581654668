"""What the algorithm of a run decided: FedDDPM+'s verdicts, votes, choices of peers; and its privacy."""

from collections.abc import Sequence
from typing import Any

from fedddpm_app.config import ConfigError, load_saved
from fedddpm_app.export.privacy import who_saw_what
from fedddpm_app.recording.curves import LOSSES
from fedddpm_app.recording.style import CLIENTS
from fedddpm_app.report.blocks import Chart, Table, Text, cell
from fedddpm_app.report.charts import intervals, over_rounds
from fedddpm_app.report.reading import Line, StoredRun, objects_in, thinned

_SHOWN = ("comm/", "time/", "eval/", "mem/", "data/", "compute/")  # the keys of other sections
_PRIVATE = ("dp_epsilon", "dp_delta", "memorized_share", "client-dp/", "secure/", "aux/shared", "aux/replaced")
_VOTES = {"vote/local_loss": "own model", "vote/mean_loss": "mean of the models"}


def decisions(run: StoredRun) -> list[Chart | Table | Text]:
    """Return the signal and verdicts of FedDDPM+, the votes, and all other values of the phases and rounds."""
    return [*_slow_learning(run), *_votes(run), *_others(run)]


def _slow_learning(run: StoredRun) -> list[Chart | Table]:
    lines = [line for line in run.rounds if line.number("plus/signal") is not None]
    if not lines:
        return []
    rows = [{**line.place, "series": "signal", "value": line.number("plus/signal")} for line in thinned(lines)]
    corrected = [line for line in lines if line.number("correct/steps")]
    marks = [{**line.place, "label": "slow learning was detected: corrected"} for line in corrected]
    kind = "of the probe" if run.config.get("plus-signal") == "probe-loss" else "of the clients' training"
    body = [
        [
            *map(cell, (line.round, line.number("plus/signal"), line.number("plus/improvement"))),
            *map(cell, (line.number("plus/threshold"), line.row.get("plus/verdict"), line.row.get("plus/slow_rounds"))),
            "yes" if line in corrected else "",
        ]
        for line in lines
    ]
    headings = ("round", "signal", "improvement", "threshold", "verdict", "slow rounds in a row", "corrected")
    table = Table(headings, body, "verdicts of FedDDPM+")
    alt = (
        f"Line of the loss {kind}, by which FedDDPM+ detects slow learning, over {len(lines)} rounds; "
        f"{len(corrected)} corrections, in round {', '.join(str(line.round) for line in corrected) or 'none'}."
    )
    spec = over_rounds(rows, {"signal": (CLIENTS, "-")}, f"loss {kind}", marks=marks)
    note = "Triangles mark the rounds with a correction." if marks else "No round was corrected."
    return [Chart("FedDDPM+: the signal, and when it corrects", alt, spec, table, note=note)]


def _votes(run: StoredRun) -> list[Table | Text]:
    found: list[Table | Text] = []
    for line in run.lines:
        if "vote/local_loss" not in line.row:
            continue
        own, mean = (line.by_client(key) for key in _VOTES)
        losses = {client: (own.get(client), mean.get(client)) for client in dict.fromkeys([*own, *mean])}
        body = [[f"client {client}", *map(cell, pair), _vote(*pair)] for client, pair in losses.items()]
        headings = ["", *(f"loss of the {name}" for name in _VOTES.values()), "votes for"]
        table = Table(headings, body, f"Votes, {line.name}")
        teacher = line.row.get("late/teacher")
        found += [table, *([Text([f"The teachers were: {cell(teacher)}."])] if teacher else [])]
    return found


def _vote(own: object, mean: object) -> str:
    if not isinstance(own, int | float) or not isinstance(mean, int | float):
        return "–"
    return "its own model" if own < mean else "the mean"


def _others(run: StoredRun) -> list[Table]:
    """Return the values of phases and rounds that no other part of the report shows."""
    shown = (*LOSSES, "phase", "round", "start_sha256", "correct/steps", *_VOTES, "late/teacher")
    keys = {
        key: None
        for line in run.lines
        for key in line.row
        if key not in shown and not key.startswith((*_SHOWN, "plus/")) and not key.endswith("/left_out")
    }
    groups: dict[str, list[str]] = {}
    for key in keys:
        if not any(part in key for part in _PRIVATE):
            groups.setdefault(key.partition("/")[0], []).append(key)
    return [_table(run.lines, name, each) for name, each in groups.items()]


def _table(lines: Sequence[Line], name: str, keys: Sequence[str]) -> Table:
    known = [line for line in lines if any(key in line.row for key in keys)]
    body = [[line.name, *(cell(line.row.get(key)) for key in keys)] for line in known]
    return Table(["", *keys], body, f"Other values: {name}", folded=True)


def privacy(run: StoredRun) -> list[Chart | Table | Text]:
    """Return the budgets, the shares of copies, what was masked, and the findings of an audit."""
    keys = list(dict.fromkeys(key for line in run.lines for key in line.row if any(part in key for part in _PRIVATE)))
    known = [line for line in run.lines if any(key in line.row for key in keys)]
    blocks: list[Chart | Table | Text] = [Text(_sharing(run))] if run.config else []
    if keys:
        body = [[line.name, *(cell(line.row.get(key)) for key in keys)] for line in known]
        blocks.append(Table(["", *keys], body, "Guarantees and checks, per phase and round"))
    return [*blocks, *_audit(run.audit)]


def _sharing(run: StoredRun) -> list[str]:
    """Return what left the clients, in sentences; it follows from the config, which may be that of another version."""
    try:
        return who_saw_what(load_saved(run.config))
    except (ConfigError, TypeError):
        return ["The config is not one of this version: docs/privacy.md says what leaves the clients of an algorithm."]


def _audit(audit: dict[str, Any]) -> list[Chart | Table | Text]:
    """Return the attacks of `fedddpm audit` with their intervals, and the near copies that it found."""
    copies = objects_in(audit.get("copies"))
    of_copies = [[cell(each.get(key)) for key in ("name", "count", "share", "expected")] for each in copies]
    headings = ("images", "number", "share", "of real images")
    near: list[Chart | Table | Text] = [Table(headings, of_copies, "Near copies of training images")] if copies else []
    attacks = objects_in(audit.get("attacks"))
    rows, body = [], []
    for each in attacks:
        name = f"{cell(each.get('target'))}: {cell(each.get('attack'))}"
        given = each.get("auc_interval")
        low, high = given if isinstance(given, list) and len(given) == 2 else (None, None)
        if isinstance(each.get("auc"), int | float):
            rows.append({"series": name, "kind": "mean", "value": each["auc"], "low": low, "high": high})
        keys = ("auc", "auc_interval", "tpr_at_1_percent", "tpr_interval", "members", "others")
        body.append([name, *(cell(each.get(key)) for key in keys)])
    if not rows:
        return near
    table = Table(["", "AUC", "95 %", "TPR at 1 % FPR", "95 %", "members", "others"], body, "attacks")
    lines = [{"x": 0.5, "label": "a guess"}]
    spec = intervals(rows, "AUC of membership inference", {row["series"]: CLIENTS for row in rows}, lines)
    highest = max(rows, key=lambda row: row["value"])
    alt = f"AUC of each attack with its 95 % interval; the highest is {cell(highest['value'])}, {highest['series']}."
    note = "An AUC of 0.5 is that of a guess. Measured by `fedddpm audit`."
    return [Chart("Membership inference", alt, spec, table, note=note), *near]
