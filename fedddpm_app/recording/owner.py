"""The server's process of a run, and whether it is alive.

The process holds the lock of the run directory. A held lock means alive, and the lock of a process that has ended is
free. Both hold from everywhere on the machine: also from another path, and from a container, where the process has
another number. The number decides only where the lock cannot: for a copy of the folder, and without locks.
"""

import contextlib
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil

from fedddpm_app.disk.owned import LOCK, is_held

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # the same in all containers of a machine, until it restarts
_SAME_START_SECONDS = 1.0  # the clock of a process's start has a coarse resolution


def this_process(directory: Path) -> dict[str, object]:
    """Return the owner of a run directory for its ``summary.json``: this process, and the lock that it holds."""
    process = psutil.Process()
    return {
        "pid": process.pid,
        "started": process.create_time(),
        "host": socket.gethostname(),
        "lock": _identity_of_lock(directory),
    }


def describe(owner: object) -> str:
    """Return an owner as a text, such as ``pid 7 on server``."""
    return f"pid {owner.get('pid')} on {owner.get('host')}" if isinstance(owner, Mapping) else "unknown"


def has_died(directory: Path, owner: object) -> bool:
    """Return whether the owner in the ``summary.json`` of a run directory was on this machine, and has ended."""
    if not isinstance(owner, Mapping):
        return False
    try:
        if is_held(directory / LOCK):
            return False
        identity = _identity_of_lock(directory)
    except OSError:  # no locks on this file system, or the folder of another user
        identity = ""
    if identity and identity == owner.get("lock"):
        return True
    return owner.get("host") == socket.gethostname() and not _lives(owner)


def _identity_of_lock(directory: Path) -> str:
    """Return a text that only this lock of this machine has, on every path; empty if there is no lock."""
    with contextlib.suppress(OSError):
        about = (directory / LOCK).stat()
        return f"{_machine()}:{about.st_dev}:{about.st_ino}"
    return ""


def _machine() -> str:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        return socket.gethostname()


def _lives(owner: Mapping[str, object]) -> bool:
    try:
        process = psutil.Process(int(str(owner["pid"])))
        same = abs(process.create_time() - float(str(owner["started"]))) < _SAME_START_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except (psutil.Error, LookupError, ValueError):
        return False
