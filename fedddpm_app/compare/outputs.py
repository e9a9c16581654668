"""The files of a grid: ``results.json`` and ``table.md`` after every cell, the pictures at the end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedddpm_app.compare.cells import Cell
from fedddpm_app.compare.history import read_history
from fedddpm_app.compare.plan import RESULTS, TABLE, Plan
from fedddpm_app.compare.plots import plot_claim, plot_curves, plot_sweep
from fedddpm_app.compare.results import collect, problems_of
from fedddpm_app.compare.samples import save_side_by_side
from fedddpm_app.compare.table import page
from fedddpm_app.compare.trade_off import PICTURE, plot_trade_off
from fedddpm_app.device import describe_machine
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.disk.durable import replacing
from fedddpm_app.recording.files import optional, without_nan, write_json, writing
from fedddpm_app.recording.provenance import describe_environment
from fedddpm_app.recording.status import COMPLETED, now, read_status

_PICTURES = ("claim.png", "curves-*.png", "sweep-*.png", "samples-*.png", PICTURE)


class Outputs:
    """Writes the results of a grid into its folder.

    Parameters
    ----------
    plan : Plan
        The grid.
    command : str
        The command that was typed.
    """

    def __init__(self, plan: Plan, command: str) -> None:
        self._plan = plan
        self._began = now()
        environment = {key: value for key, value in describe_environment().items() if key != "platform"}
        self._session = {"command": command, "machine": describe_machine(), **environment}
        self._before = _sessions(plan.folder / RESULTS)
        self._results: dict[str, Any] = {}

    def write(self, failed: Mapping[Cell, str], hours: float) -> list[str]:
        """Write ``results.json`` and ``table.md``; return a sentence for each problem of the metrics.

        ``hours`` is the time that this command has run cells; 0 if it had none to run.
        """
        spec = self._plan.spec
        session = {**self._session, "started": self._began, "ended": now(), "wall_hours": hours}
        sessions = [*self._before, *([session] if hours else [])]
        grid = spec.model_dump(include={"base", "conditions", "rows", "sweep"})
        about = spec.model_dump(
            include={"name", "title", "reference", "also_against", "match", "budget", "seeds", "metrics", "trade_off"}
        )
        found = {**about, "grid": grid, "sessions": sessions, **collect(self._plan, failed)}
        self._results = without_nan(found)  # type: ignore[assignment]
        write_json(self._plan.folder / RESULTS, self._results)
        with writing(self._plan.folder / TABLE), replacing(self._plan.folder / TABLE) as work:
            work.write_text(page(self._results), encoding="utf-8")
        return problems_of(self._plan, self._results)

    def save_pictures(self) -> None:
        """Write the pictures of the last results; a picture that cannot be written gives a warning."""
        plan, folder, results = self._plan, self._plan.folder, self._results
        for old in (path for pattern in _PICTURES for path in folder.glob(pattern)):
            old.unlink(missing_ok=True)
        complete = [cell for cell in plan.cells if read_status(cell.directory).state == COMPLETED]
        measured = [metric for metric in plan.spec.metrics if metric in results["measured"]]
        known = {(each["label"], each["condition"], each["seed"]): each.get("metrics", {}) for each in results["cells"]}
        for metric in measured:
            histories: dict[tuple[str, str], list[Any]] = {}
            for cell in complete:
                key = cell.setting.line.label, cell.setting.condition
                if metric in known[*key, cell.seed]:  # else it was measured otherwise
                    histories.setdefault(key, []).append(read_history(cell.directory, metric))
            with optional(folder):
                plot_curves(results, metric, histories, folder / f"curves-{metric}.png")
                if plan.spec.sweep:
                    plot_sweep(results, metric, folder / f"sweep-{metric}.png")
        with optional(folder):
            if measured:
                plot_claim(results, measured[0], folder / "claim.png")
            if plan.spec.trade_off:
                plot_trade_off(results, folder / PICTURE)
        for condition in plan.spec.conditions:
            same = [c for c in complete if c.setting.condition == condition and c.seed == plan.spec.seeds[0]]
            with optional(folder):
                save_side_by_side(same, folder / f"samples-{condition}.png")


def _sessions(path: Path) -> list[Any]:
    """Return the earlier commands that ran cells of this grid."""
    try:
        found = read_object(path).get("sessions")
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []
