"""The cells of a published grid in one zip file, so that another machine can continue the grid.

It holds what results are made from: per cell ``config.json``, ``summary.json`` and ``stats.jsonl``, and with the first
seed the last sheet of images. Weights, checkpoints and logs are left out, as are absolute paths and names of hosts.
"""

import json
import shutil
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedddpm_app import limits
from fedddpm_app.compare.cells import ORIGIN, Cell, other_values
from fedddpm_app.compare.places import without_places
from fedddpm_app.compare.plan import RESULTS, SOLVED, Plan
from fedddpm_app.compare.samples import last_sheet
from fedddpm_app.compare.shared import OF_GRID, source_of
from fedddpm_app.config import ConfigError
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.disk.durable import partial_of, publish, replacing
from fedddpm_app.recording.files import write_json, writing
from fedddpm_app.recording.layout import CONFIG, SAMPLES, STATS, SUMMARY
from fedddpm_app.recording.reading import read_rows
from fedddpm_app.recording.status import COMPLETED, read_status

CELLS = "cells.zip"  # in the folder of a published grid
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of all members, so that the same cells give the same bytes


def save_cells(plan: Plan, path: Path) -> None:
    """Write the complete cells of a grid, and its solved values.

    Raises
    ------
    RecordingError
        When the file cannot be written.
    """
    with writing(path), replacing(path) as work, zipfile.ZipFile(work, "w") as archive:
        _add(archive, SOLVED, _json(read_object(plan.folder / SOLVED)))
        for cell in plan.cells:
            if read_status(cell.directory).state == COMPLETED:
                for name, content in _members(cell, with_sheet=cell.seed == plan.spec.seeds[0]).items():
                    _add(archive, f"{place_of(cell, plan)}/{name}", content)


def _members(cell: Cell, *, with_sheet: bool) -> dict[str, bytes]:
    """Return the files of a cell that are kept, by their names in its folder."""
    directory = cell.directory
    found = {
        ORIGIN: _json({OF_GRID: source_of(directory)}),
        CONFIG: _json(read_object(directory / CONFIG)),
        SUMMARY: _json(read_object(directory / SUMMARY)),
        STATS: b"".join(map(_json, read_rows(directory / STATS))),
    }
    if with_sheet and (last := last_sheet(directory)):
        found[f"{SAMPLES}/{last[0].name}"] = last[0].read_bytes()
    return found


def _json(value: object) -> bytes:
    return f"{json.dumps(without_places(value))}\n".encode()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    member = zipfile.ZipInfo(name, _EPOCH)
    member.external_attr = 0o644 << 16
    archive.writestr(member, content, zipfile.ZIP_DEFLATED)


def place_of(cell: Cell, plan: Plan) -> str:
    """Return a cell's folder in the grid's."""
    return cell.directory.relative_to(plan.folder).as_posix()


def _path(target: Path, name: str) -> Path:
    return target / name / CELLS


def _check_members(members: Sequence[zipfile.ZipInfo]) -> None:
    """Raise ``ValueError`` if members would take too much memory; each is read up to the size that it states."""
    size = sum(member.file_size for member in members)
    if len(members) > limits.CELLS_FILES:
        raise ValueError(f"it states {len(members):,} files, more than {limits.CELLS_FILES:,}")
    if size > limits.CELLS_BYTES:
        raise ValueError(f"it states {size:,} bytes unpacked, more than {limits.CELLS_BYTES:,}")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(f"{member.filename} is packed by the method {member.compress_type}: pack it by deflate")
        if member.filename.endswith(".json") and member.file_size > limits.JSON_BYTES:
            raise ValueError(f"{member.filename} states {member.file_size:,} bytes, more than {limits.JSON_BYTES:,}")


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Return a member; no more is unpacked than it states, which is so only for a read of a stated size."""
    with archive.open(member) as file:
        return file.read(member.file_size)


class Archive:
    """The published cells of a grid.

    Parameters
    ----------
    target : Path
        The folder that ``--publish`` wrote to.
    name : str
        The grid's name.

    Attributes
    ----------
    path : Path
        The file.

    Raises
    ------
    ConfigError
        When there are no such cells, or they cannot be read.
    """

    def __init__(self, target: Path, name: str) -> None:
        self.path = path = _path(target, name)
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                _check_members(members)
                self._files = {member.filename: _content(archive, member) for member in members}
            self._results = read_object(target / f"{name}.json")
        except Exception as error:  # of several libraries, for a damaged archive
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"--restore = {target}: the cells of {name} cannot be read ({reason}; {path}): give the folder that "
                "--publish wrote to, or leave --restore out."
            ) from error

    @staticmethod
    def exists(target: Path, name: str) -> bool:
        """Return whether a folder has published cells of a grid."""
        return _path(target, name).exists()

    @property
    def solved(self) -> dict[str, Any]:
        """The solved values of the grid, as in its ``solved.json``."""
        return self._object(SOLVED)

    @property
    def places(self) -> set[str]:
        """The folders of all complete cells, whatever their configs."""
        folders = {name.removesuffix(f"/{SUMMARY}") for name in self._files if name.endswith(f"/{SUMMARY}")}
        return {each for each in folders if self._object(f"{each}/{SUMMARY}").get("status") == COMPLETED}

    def find(self, plan: Plan, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells that can be restored: those that have no folder yet, and are complete in the archive."""
        return [cell for cell in self.complete(plan, cells) if not cell.directory.exists()]

    def complete(self, plan: Plan, cells: Iterable[Cell]) -> list[Cell]:
        """Return the cells of which the archive has a complete run with their config; paths count by last names."""
        found = []
        for cell in cells:
            prefix = f"{place_of(cell, plan)}/"
            saved = self._object(prefix + CONFIG).get("run_config")
            complete = self._object(prefix + SUMMARY).get("status") == COMPLETED and prefix + STATS in self._files
            if complete and isinstance(saved, dict):
                same = not other_values(saved, cell, plan.defaults, published=True)
                found += [cell] if same else []
        return found

    def restore(self, plan: Plan, cells: Iterable[Cell]) -> None:
        """Write cells into their folders, and the earlier commands of the grid into its results.

        Raises
        ------
        RecordingError
            When a file cannot be written.
        """
        for cell in cells:
            prefix = f"{place_of(cell, plan)}/"
            work = partial_of(cell.directory)
            with writing(cell.directory):
                shutil.rmtree(work, ignore_errors=True)
                (work / SAMPLES).mkdir(parents=True)
                for name in (ORIGIN, CONFIG, SUMMARY, STATS):
                    (work / name).write_bytes(self._files.get(prefix + name, b""))
                for name, content in self._files.items():
                    if name.startswith(f"{prefix}{SAMPLES}/"):
                        (work / SAMPLES / Path(name).name).write_bytes(content)
                if cell.directory.is_symlink():  # to a removed run of another grid
                    cell.directory.unlink()
                publish(work, cell.directory)
        self._restore_commands(plan.folder / RESULTS)

    def _restore_commands(self, path: Path) -> None:
        """Put the published commands before those of this machine in a ``results.json``."""
        try:
            own = read_object(path)
        except (OSError, ValueError):
            own = {}
        commands = [each for found in (self._results, own) for each in found.get("sessions") or ()]
        by_start = {each.get("started"): each for each in commands if isinstance(each, dict)}
        write_json(path, {**self._results, **own, "sessions": list(by_start.values())})

    def _object(self, name: str) -> dict[str, Any]:
        try:
            found = json.loads(self._files.get(name, b"{}"))
        except (ValueError, RecursionError):
            found = {}
        return found if isinstance(found, dict) else {}
