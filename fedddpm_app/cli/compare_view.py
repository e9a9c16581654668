"""The output of `fedddpm compare`: the plan, and the progress of its cells."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from rich import box
from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedddpm_app.cli.common import PlainConsole, console, say
from fedddpm_app.compare.cells import Cell, Setting, State
from fedddpm_app.compare.plan import Plan, amount_of, far_from_budget
from fedddpm_app.compare.pool import Running
from fedddpm_app.compare.progress import GridProgress, place_of

_BAR_WIDTH = 40
_WIDTH = 120  # of a plan that is not printed on a terminal


class GridView:
    """Shows the progress of a grid: a live table on a terminal, elsewhere a line per event.

    Parameters
    ----------
    progress : GridProgress
        Counts the cells.
    on_end : callable
        Called after the end of each cell.
    """

    def __init__(self, progress: GridProgress, on_end: Callable[[], object]) -> None:
        self._progress, self._on_end = progress, on_end
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._running: list[Running] = []

    def __enter__(self) -> "GridView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, running: Running) -> None:
        """Count a cell that starts."""
        self._progress.started(running.cell)
        self._running.append(running)
        if not self._live:
            say(f"started: {running.cell.name}")

    def ended(self, running: Running, exit_code: int | None) -> None:
        """Count a cell that ended, and print how."""
        self._running.remove(running)
        reason = self._progress.ended(running.cell, exit_code)
        took = _time(running.seconds())
        say(f"{self._counts()} {running.cell.name}: {f'failed: {reason}' if reason else f'done in {took}'}")
        self._on_end()

    def tick(self, running: Sequence[Running]) -> None:
        """Refresh the table of a terminal."""
        if self._live:
            self._live.update(self._table(), refresh=True)

    def _counts(self) -> str:
        progress = self._progress
        failed = f", {len(progress.failed)} failed" if progress.failed else ""
        left = progress.seconds_left(self._running)
        rest = f", about {_time(left)} left" if left else ""
        return f"[{progress.completed}/{progress.total}{failed}{rest}]"

    def _table(self) -> Group:
        """Return the bar of the grid, and a line for each running cell."""
        done = self._progress.completed + len(self._progress.failed)
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=self._progress.total, completed=done, width=_BAR_WIDTH), Text(self._counts()))
        cells = Table.grid(padding=(0, 2))
        for each in self._running:
            cells.add_row(Text(each.cell.name), Text(place_of(each.cell)), Text(_time(each.seconds())))
        return Group(bar, cells)


def print_plan(plan: Plan, states: Mapping[Cell, State], jobs: int) -> None:
    """Print the rows with their solved keys and costs, and the number of cells."""
    spec = plan.spec
    equal = {"rounds": "equal rounds", "steps": "equal gradient steps", "bytes": "equal bytes"}[spec.match]
    title = f"{spec.title or spec.name} ({equal}; reference: {spec.reference})"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for column in ("row", *([spec.sweep.key] if spec.sweep else []), "conditions", "solved"):
        table.add_column(column, overflow="fold")
    for column in ("steps", "up", "down", *(["budget"] if spec.match != "rounds" else [])):
        table.add_column(column, justify="right", no_wrap=True)
    for settings in _together(plan.settings):
        table.add_row(*_row(plan, settings))
    (console if console.is_terminal else PlainConsole(width=_WIDTH)).print(table)
    say("Expected cost of a run: gradient steps; models from the clients (up) and to them (down).")
    if far := far_from_budget(plan):
        named = ", ".join(f"{label} {difference:+.1%}" for label, difference in far.items())
        say(
            f"More than 2 % from the budget: {named}. A second key in `solve` can use the rest, such as "
            'solve = ["num-rounds", "local-steps"].'
        )
    counts = Counter(states.values())
    parts = [f"{counts[state]} {word}" for state, word in _WORDS.items() if counts[state]]
    rows = len({setting.line for setting in plan.settings})
    sizes = f"rows: {rows}, conditions: {len(spec.conditions)}, seeds: {len(spec.seeds)}"
    say(f"{len(states)} cells ({sizes}): {', '.join(parts)}; {jobs} at a time; folder: {plan.folder}")


_WORDS = {
    State.COMPLETED: "complete",
    State.PUBLISHED: "published",
    State.SHARED: "complete in other grids",
    State.RUNNING: "running",
    State.STARTED: "to resume",
    State.NEW: "to run",
}


def _together(settings: Sequence[Setting]) -> list[list[Setting]]:
    """Return the settings of each line, those with the same solved keys together."""
    groups: dict[object, list[Setting]] = {}
    for each in settings:
        groups.setdefault((each.line, str(each.solved)), []).append(each)
    return list(groups.values())


def _row(plan: Plan, settings: Sequence[Setting]) -> list[Text]:
    first, names = settings[0], [each.condition for each in settings]
    where = "all" if len(names) == len(plan.spec.conditions) else ", ".join(names)
    solved = "\n".join(f"{key} = {value}" for key, value in first.solved.items())
    costs = [[getattr(each.cost, part) for each in settings] for part in ("steps", "models_up", "models_down")]
    shares = [100 * amount_of(plan.spec, each.cost) / each.budget for each in settings if each.budget]
    value = ["all" if first.line.value is None else str(first.line.value)] if plan.spec.sweep else []
    texts = [
        first.line.row,
        *value,
        where,
        solved,
        *map(_range, costs),
        *([f"{_range(shares, '.1f')} %"] if shares else []),
    ]
    return [Text(text) for text in texts]


def _range(values: Sequence[float], digits: str = ",.5g") -> str:
    """Return the smallest and the largest of some numbers, or one if they look the same."""
    return "-".join(dict.fromkeys(f"{value:{digits}}" for value in (min(values), max(values))))


def _time(seconds: float) -> str:
    """Return a time such as 0:01:20."""
    return str(timedelta(seconds=round(seconds)))
