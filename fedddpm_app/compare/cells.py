"""The cells of a grid: their configs, their folders, and how far they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fedddpm_app.algorithms import find_algorithm
from fedddpm_app.compare.places import without_places
from fedddpm_app.compare.spec import folder_name
from fedddpm_app.config import Config, ConfigError, Scalar, keys_without_effect, shown
from fedddpm_app.config.purposes import KEEPING, PLACES, RESUMING, SHOWING, WAITING
from fedddpm_app.data.settings import read_auto
from fedddpm_app.federation.cost import Cost
from fedddpm_app.recording.layout import CONFIG
from fedddpm_app.recording.reading import run_config_of
from fedddpm_app.recording.status import COMPLETED, RUNNING, Status, is_locked, read_status

ORIGIN = "origin.json"  # in the folder of a restored cell
REFUSED = 2  # the exit code of a cell that could not start or continue
# Keys that change neither the weights nor the metrics of a run.
_NEUTRAL = (*PLACES, *RESUMING, *WAITING, *KEEPING, *SHOWING, "transport")


class State(StrEnum):
    """How far a cell is; a shared one is a complete run of another grid, a published one can be restored."""

    NEW = "new"
    STARTED = "started"
    RUNNING = "running"
    SHARED = "shared"
    PUBLISHED = "published"
    COMPLETED = "completed"


@dataclass(frozen=True)
class Line:
    """A line of the table: a row, and with a sweep the value of its key (None where it has no effect).

    Attributes
    ----------
    row : str
        The row's name.
    key : str
        The key of the sweep; empty without one.
    value : bool, int, float, str or None
        Its value.
    """

    row: str
    key: str = ""
    value: Scalar | None = None

    @property
    def label(self) -> str:
        """The line's name for readers."""
        return self.row if self.value is None else f"{self.row}, {self.key} = {self.value}"

    @property
    def folder(self) -> Path:
        """The folder of its cells, in that of the grid."""
        return Path(self.row) if self.value is None else Path(self.row, f"{self.key}-{folder_name(self.value)}")


@dataclass(frozen=True, eq=False)
class Setting:
    """A line under a condition: the runs that differ only in their seed.

    Attributes
    ----------
    line, condition : Line, str
        Its place in the table.
    keys : dict
        Its run-config keys; all others have the app's values.
    config : Config
        With these keys and the first seed.
    solved : dict of str to int
        The key that was solved for, with its value; empty without one.
    cost : Cost
        The mean expected cost of a run.
    budget : float or None
        In the unit of ``match``; None if the rounds are equal.
    """

    line: Line
    condition: str
    keys: Mapping[str, Scalar]
    config: Config
    solved: Mapping[str, int]
    cost: Cost
    budget: float | None = None


@dataclass(frozen=True, eq=False)
class Cell:
    """A run of the grid.

    Attributes
    ----------
    setting, seed : Setting, int
        The config and the seed of the run.
    directory : Path
        Its run directory, an absolute path.
    """

    setting: Setting
    seed: int
    directory: Path

    @property
    def name(self) -> str:
        """The cell's name for readers."""
        return f"{self.setting.line.label} | {self.setting.condition} | seed {self.seed}"

    @property
    def log(self) -> Path:
        """The file with the whole output of its process, beside the run directory."""
        return self.directory.with_name(f"{self.directory.name}.log")

    @property
    def overrides(self) -> dict[str, Scalar]:
        """The run's keys, with its place."""
        place = {"output-dir": str(self.directory.parent), "run-name": self.directory.name}
        return {**self.setting.keys, "seed": self.seed, **place}


def state_of(cell: Cell, defaults: Mapping[str, Scalar]) -> State:
    """Return how far a cell is.

    Raises
    ------
    ConfigError
        When its folder holds a run with another config.
    """
    directory = cell.directory
    if not (directory / CONFIG).exists():
        return State.NEW
    saved = run_config_of(directory, fix="remove the folder, or restore it")
    different = other_values(saved, cell, defaults, published=(directory / ORIGIN).exists())
    if different:
        raise ConfigError(
            f"{directory} was made with another config: {'; '.join(different)}. Set the earlier values in the grid "
            "file, remove the folder, or give another --out."
        )
    status = read_status(directory)
    if status.state == RUNNING and is_locked(directory):
        return State.RUNNING
    return State.COMPLETED if status.state == COMPLETED else State.STARTED


def other_values(
    saved: Mapping[str, Scalar], cell: Cell, defaults: Mapping[str, Scalar], *, published: bool
) -> list[str]:
    """Return what differs between a saved run config and that of a cell, in words: keys that have an effect in it.

    A ``published`` config has only the last names of paths, so that only these are compared.
    """
    planned = {**defaults, **cell.overrides}
    planned |= read_auto(planned)
    before = {**defaults, **saved}
    return [
        f"{key} was {shown(before.get(key))} and is {shown(planned.get(key))}"
        for key in sorted(effective({**before, **planned}, cell.setting.config))
        if before.get(key) != planned.get(key)
        and not (published and without_places(before.get(key)) == without_places(planned.get(key)))
    ]


def effective(run_config: Mapping[str, Scalar], config: Config) -> dict[str, Scalar]:
    """Return the keys of a run config that have an effect on its weights or metrics, given what it loads as."""
    idle = keys_without_effect(run_config) | find_algorithm(config.run.algorithm).keys_without_effect(config)
    return {key: value for key, value in run_config.items() if key not in idle and not key.startswith(_NEUTRAL)}


def reason_of_end(cell: Cell, exit_code: int | None) -> str:
    """Return the reason why a cell did not complete, from its status, its output, or the exit code of its process."""
    status: Status = read_status(cell.directory)
    if status.error and exit_code != REFUSED:  # else it is the error of an earlier call
        return status.error
    if exit_code is not None and exit_code < 0:
        return f"its process was killed by signal {-exit_code} (out of memory?)"
    try:
        lines = cell.log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "it has no output")
    return f"exit code {exit_code}: {last}"
