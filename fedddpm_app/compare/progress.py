"""How far a grid is: cells that are done, running and failed, and the time left."""

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence

from fedddpm_app.compare.cells import Cell, State, reason_of_end
from fedddpm_app.compare.pool import Running
from fedddpm_app.progress import parse_line
from fedddpm_app.recording.layout import LOG
from fedddpm_app.recording.status import COMPLETED, read_status

_TAIL_BYTES = 16_384


class GridProgress:
    """Counts the cells of a grid, and estimates the time left from the cells that are done.

    Parameters
    ----------
    states : mapping of Cell to State
        All cells.
    jobs : int
        The number of cells that run at a time.

    Attributes
    ----------
    completed : int
        Cells that are complete, those of earlier calls included.
    failed : dict of Cell to str
        The reason of each cell that did not complete in this call.
    """

    def __init__(self, states: Mapping[Cell, State], jobs: int) -> None:
        self.total = len(states)
        self.completed = sum(state is State.COMPLETED for state in states.values())
        self.failed: dict[Cell, str] = {}
        self._jobs = jobs
        self._waiting = [cell for cell, state in states.items() if state is not State.COMPLETED]
        self._rates: dict[str, list[tuple[float, float]]] = defaultdict(list)  # row -> (expected steps, seconds)
        for cell, state in states.items():
            if state is State.COMPLETED:
                self._learn(cell)

    def started(self, cell: Cell) -> None:
        """Count a cell that starts."""
        self._waiting.remove(cell)

    def ended(self, cell: Cell, exit_code: int | None) -> str:
        """Count a cell whose process has ended; return the reason if it did not complete, else an empty text."""
        if read_status(cell.directory).state == COMPLETED:
            self.completed += 1
            self._learn(cell)
            return ""
        self.failed[cell] = reason_of_end(cell, exit_code)
        return self.failed[cell]

    def seconds_left(self, running: Sequence[Running]) -> float | None:
        """Estimate the time left; None before the first cell is done."""
        if not any(self._rates.values()):
            return None
        left = [max(0.0, self._seconds(each.cell) - each.seconds()) for each in running]
        total = sum(left) + sum(map(self._seconds, self._waiting))
        return max([total / max(1, min(self._jobs, len(left) + len(self._waiting))), *left])

    def _learn(self, cell: Cell) -> None:
        seconds = read_status(cell.directory).summary.get("time/total_s")
        if isinstance(seconds, int | float):
            self._rates[cell.setting.line.row].append((_work_of(cell), float(seconds)))

    def _seconds(self, cell: Cell) -> float:
        """Return the expected time of a cell, from the cells of its row if one is done, else from all cells."""
        known = self._rates[cell.setting.line.row] or [rate for rates in self._rates.values() for rate in rates]
        return sum(seconds for _, seconds in known) / sum(work for work, _ in known) * _work_of(cell)


def _work_of(cell: Cell) -> float:
    return max(1.0, cell.setting.cost.steps)


def place_of(cell: Cell) -> str:
    """Return where a running cell is, such as ``round 3/8, train 40/160``, from the last progress line of its log."""
    try:
        with (cell.directory / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return "starting"
    event = next((event for line in reversed(lines) if (event := parse_line(line))), None)
    if event is None:
        return "starting"
    server_round = f"round {event.server_round}/{event.num_rounds}, " if event.server_round else ""
    return f"{server_round}{event.phase} {event.step:,}/{event.steps:,}"
