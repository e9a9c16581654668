"""What dead runs left on this machine: found by the next run and by `fedddpm clean`.

Only things of this user are found, and only if their owner has certainly ended: nobody holds their lock, or the run
that they belong to has ended.
"""

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from fedddpm_app.disk.bounded import read_object
from fedddpm_app.disk.durable import PARTIAL
from fedddpm_app.disk.owned import LOCK, OwnerLock, abandoned, taken_over
from fedddpm_app.federation.flower_internals import get_flwr_home
from fedddpm_app.launch.app_folder import BUNDLE_PREFIX
from fedddpm_app.launch.flower_run import CONFIG_PREFIX
from fedddpm_app.launch.homes import PREFIX as HOME_PREFIX
from fedddpm_app.launch.homes import end_home, headless
from fedddpm_app.recording.layout import AUXILIARY, CHECKPOINTS, CONFIG, SCRATCH, UNFINISHED
from fedddpm_app.recording.status import COMPLETED, Status, read_status
from fedddpm_app.recording.status_file import RESERVE
from fedddpm_app.transport.shared import PREFIX as SHARED_PREFIX
from fedddpm_app.transport.shared import ROOT as SHARED_MEMORY

DELIVERY_PREFIX = "fedddpm-delivery-"
INCOMING_PREFIX = "fedddpm-incoming-"  # beside run directories
HOME = "Flower home and its processes"
_STATE_FOLDER = "fedddpm-state"
_STATE = re.compile(rf"client-\d{{4,9}}(-round-\d{{4,9}}-[0-9a-f]{{64}}\.safetensors|\.\d+{re.escape(PARTIAL)})")
_PARTIAL_SECONDS = 3600.0
_OF_PROCESS = re.compile(rf"\.(\d+){re.escape(PARTIAL)}$")
_OF_RUNS = (  # kind, pattern in the run directory, whether a resumed run needs it
    ("clients' models and replies", SCRATCH, False),
    ("finished pieces of a phase", UNFINISHED, True),
    ("unfinished checkpoint", f"{CHECKPOINTS}/partial-*", False),
    ("unfinished auxiliary set", f"{AUXILIARY}/*{PARTIAL}", False),
    ("file", RESERVE, False),
)


@dataclass(frozen=True)
class LeftOver:
    """A file or folder that a dead run left.

    Attributes
    ----------
    kind : str
        What it is, for the user.
    path : Path
        The file or folder.
    run : Path or None
        The run directory that it belongs to, if that exists.
    is_resumable : bool
        Whether that run stopped before its end, so that a resumed run may need it.
    """

    kind: str
    path: Path
    run: Path | None = None
    is_resumable: bool = False

    @property
    def num_bytes(self) -> int:
        """The size."""
        paths = [self.path, *self.path.rglob("*")] if self.path.is_dir() else [self.path]
        total = 0
        for path in paths:
            with contextlib.suppress(OSError):
                total += path.lstat().st_size if not path.is_dir() else 0
        return total

    @property
    def age_s(self) -> float:
        """The seconds since it, or a file in it, was last changed."""
        changes = []
        for path in [self.path, *self.path.rglob("*")]:
            with contextlib.suppress(OSError):
                changes.append(path.lstat().st_mtime)
        return time.time() - max(changes, default=time.time())

    def remove(self) -> bool:
        """Remove it, and return whether it is gone; a run that is resumed in between keeps it."""
        if self.kind == HOME:
            return end_home(self.path)
        if self.run is not None:
            return self._remove_from(self.run)
        with taken_over(self.path) if self.path.is_dir() else contextlib.nullcontext(True) as ours:
            return ours and _remove(self.path)

    def _remove_from(self, run: Path) -> bool:
        """Remove it from a run that has ended; nobody can resume the run meanwhile."""
        lock = OwnerLock(run / LOCK)
        try:
            if not lock.acquire():
                return False
        except OSError:  # a file system without locks; the status remains
            pass
        try:
            return read_status(run).is_final and _remove(self.path)
        finally:
            lock.release(remove=True)


def find_left_overs(runs: Path | None = None) -> list[LeftOver]:
    """Return what dead runs left: temporary folders, and the scratch files and client states of the runs in ``runs``.

    Parameters
    ----------
    runs : Path, optional
        The parent folder of run directories.
    """
    temporary = {"configuration": CONFIG_PREFIX, "app bundle": BUNDLE_PREFIX, "delivery": DELIVERY_PREFIX}
    found = [LeftOver(kind, path) for kind, prefix in temporary.items() for path in abandoned(prefix)]
    found += [LeftOver("weights in shared memory", path) for path in abandoned(SHARED_PREFIX, SHARED_MEMORY)]
    found += [LeftOver("incomplete delivery", path) for path in abandoned(INCOMING_PREFIX, runs)] if runs else []
    found += [LeftOver(HOME, home) for home in abandoned(HOME_PREFIX) if not headless(home)]
    return found + [item for directory in run_directories(runs) for item in _of_run(directory)]


def run_directories(runs: Path | None) -> list[Path]:
    """Return the run directories of this user in a folder."""
    try:
        return sorted(path.parent for path in runs.glob(f"*/{CONFIG}") if _is_ours(path.parent)) if runs else []
    except OSError:
        return []


def _is_ours(path: Path) -> bool:
    try:
        return path.stat().st_uid == os.getuid()
    except OSError:
        return False


def _of_run(directory: Path) -> Iterator[LeftOver]:
    """Yield the left-overs of a run that has ended: its working files, and the states of its clients."""
    status = read_status(directory)
    if not status.is_final:
        return
    resumable = status.state != COMPLETED
    about = f"of the {status.state} run {directory.name}"
    for kind, pattern, is_needed in _OF_RUNS:
        for path in sorted(directory.glob(pattern)):
            yield LeftOver(f"{kind} {about}", path, directory, resumable and is_needed)
    yield from (replace(item, kind=f"{item.kind} {about}") for item in partial_files(directory))
    folder = _state_folder(directory, status)
    if folder is not None:
        yield LeftOver(f"client states {about}", folder, directory, resumable)


def _state_folder(directory: Path, status: Status) -> Path | None:
    """Return the folder of the states of a run's clients on this host; a copy of a run directory has none."""
    try:
        place = Path(str(status.summary["directory"]))
        if not place.is_absolute() or not directory.samefile(place):
            return None
        about = read_object(directory / CONFIG)
        run_id, given = int(about["run_id"]), str(about["run_config"].get("state-dir", ""))
        parent = Path(given).expanduser() if given else get_flwr_home() / _STATE_FOLDER
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError):
        return None
    folder = parent / f"run-{run_id}"
    return folder if _holds_states(folder) else None


def _holds_states(folder: Path) -> bool:
    """Return whether a folder has only client states: a run directory from another host could name any folder."""
    try:
        return not folder.is_symlink() and all(_STATE.fullmatch(path.name) for path in folder.iterdir())
    except OSError:
        return False


def partial_files(folder: Path) -> list[LeftOver]:
    """Return the unfinished files in a folder whose names have the number of a process that has ended.

    In a container, processes have other numbers. A file that was changed in the last hour is therefore kept.
    """
    found = []
    for path in folder.rglob(f"*{PARTIAL}"):
        writer = _OF_PROCESS.search(path.name)
        item = LeftOver("unfinished file", path)
        is_dead = writer is not None and not psutil.pid_exists(int(writer[1]))
        if is_dead and _is_ours(path) and item.age_s > _PARTIAL_SECONDS:
            found.append(item)
    return found


def _remove(path: Path) -> bool:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return not path.exists()
