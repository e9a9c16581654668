"""Phases of a run beside its rounds: their lines are kept, so that a resumed run does not repeat the work.

A line has the ``round`` in which the phase was done, 0 before the rounds, and, if clients trained in it, the digest of
the weights that they started from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedddpm_app.disk.durable import replacing
from fedddpm_app.federation.accounting import Accounting
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.progress import note

START = "start_sha256"


def finish_phase(recorder: Recorder, row: Mapping[str, object]) -> None:
    """Write the line of a finished phase to ``stats.jsonl``, once, and keep it for a resumed run.

    A phase that is repeated from the same weights, because its result was not stored, has its line already.
    """
    path = _path(recorder, str(row["phase"]))
    before = finished_phase(recorder, str(row["phase"]))
    if before is not None and before.get(START) == row.get(START):
        row = {**row, "round": before["round"]}
    with replacing(path) as work:
        work.write_text(json.dumps(row), encoding="utf-8")
    if not _is_written(recorder, row):
        recorder.append(row)


def finished_phase(recorder: Recorder, phase: str) -> dict[str, Any] | None:
    """Return the line of a phase that this run has finished, also in an earlier process; None if there is none."""
    try:
        row = json.loads(_path(recorder, phase).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) else None


def counted_phase(recorder: Recorder, phase: str, start: str) -> bool:
    """Return whether the cost of a phase from the weights with the digest ``start`` is in the accounting already."""
    row = finished_phase(recorder, phase)
    return row is not None and row.get(START) == start and _is_written(recorder, row)


def replay_phase(recorder: Recorder, accounting: Accounting, phase: str) -> None:
    """Write the line of a phase that an earlier process finished, and add its cost; not if it is written already."""
    row = finished_phase(recorder, phase)
    if row is not None and not _is_written(recorder, row):
        note(f"{phase}: complete already, nothing is repeated")
        accounting.add(row)
        recorder.append(row)


def forget_phase(recorder: Recorder, phase: str) -> None:
    """Forget that a phase is finished: it is due again in a later round."""
    _path(recorder, phase).unlink(missing_ok=True)


def _is_written(recorder: Recorder, row: Mapping[str, object]) -> bool:
    return any((line["phase"], line.get("round")) == (row["phase"], row["round"]) for line in recorder.stats)


def _path(recorder: Recorder, phase: str) -> Path:
    return recorder.unfinished / f"phase-{phase}.json"
