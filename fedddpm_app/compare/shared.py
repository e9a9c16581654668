"""Cells that a grid has in common with others: a run that another grid has completed is linked, not run again."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from fedddpm_app.compare.cells import ORIGIN, Cell, State, effective
from fedddpm_app.compare.plan import RESULTS, Plan
from fedddpm_app.config import ConfigError, Scalar, load_config
from fedddpm_app.data.settings import read_auto
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.progress import logger
from fedddpm_app.recording.layout import CONFIG
from fedddpm_app.recording.reading import read_run_config
from fedddpm_app.recording.status import COMPLETED, read_status

OF_GRID = "of_grid"


def find_shared(plan: Plan, cells: Iterable[Cell]) -> dict[Cell, Path]:
    """Return the complete runs, of the grids in the same parent folder, that have the config and the seed of a cell.

    A user's own algorithm is not shared, because its code may have changed. Runs of another version of the app whose
    config cannot be read are left out.
    """
    cells = [cell for cell in cells if ":" not in cell.setting.config.run.algorithm]
    runs: dict[frozenset[tuple[str, Scalar]], Path] = {}
    for directory in _runs_beside(plan.folder) if cells else ():
        with suppress(OSError, ValueError, ConfigError):
            if read_status(directory).state == COMPLETED:
                runs.setdefault(_identity({**plan.defaults, **read_run_config(directory)}), directory)
    wanted = {cell: _identity({**plan.defaults, **cell.overrides}) for cell in cells}
    return {cell: runs[identity] for cell, identity in wanted.items() if identity in runs}


def link_shared(states: Mapping[Cell, State], shared: Mapping[Cell, Path]) -> dict[Cell, State]:
    """Link the runs of other grids into the folder of this one; return the states after it.

    A link whose run was removed is removed too. Where the file system has no links, the cell is run.
    """
    states = dict(states)
    for cell, state in states.items():
        if state is State.NEW and cell.directory.is_symlink():
            cell.directory.unlink()
    for cell, run in shared.items():
        try:
            cell.directory.parent.mkdir(parents=True, exist_ok=True)
            cell.directory.symlink_to(os.path.relpath(run, cell.directory.parent), target_is_directory=True)
        except OSError as error:
            logger.warning("%s cannot be a link (%s); the cell is run", cell.directory, error.strerror)
            continue
        states[cell] = State.COMPLETED
    return states


def source_of(directory: Path) -> str:
    """Return the name of the folder of the grid that a linked run belongs to; empty for a run of this grid.

    The file ``origin.json`` keeps it for a run that was published and restored.
    """
    with suppress(OSError, ValueError):
        if source := read_object(directory / ORIGIN).get(OF_GRID):
            return str(source)
    above = directory.resolve().parents if directory.is_symlink() else ()
    return next((folder.name for folder in above if (folder / RESULTS).exists()), "")


def _identity(run_config: dict[str, Scalar]) -> frozenset[tuple[str, Scalar]]:
    """Return what decides on the result of a run."""
    run_config |= read_auto(run_config)
    return frozenset(effective(run_config, load_config(run_config)).items())


def _runs_beside(folder: Path) -> Iterator[Path]:
    """Yield the run directories of the other grids in the parent folder, in the order of their names."""
    for results in sorted(folder.parent.glob(f"*/{RESULTS}")):
        if results.parent != folder:
            for config in sorted(results.parent.rglob(f"seed-*/{CONFIG}")):
                if not config.parent.is_symlink():
                    yield config.parent
