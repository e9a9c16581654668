"""Checks of this machine before a run: each refusal is one sentence with the setting and the fix.

Ray and Flower fail on such a machine only after minutes, or hang, with messages about their own insides. The checks
take milliseconds and leave no files.
"""

import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fedddpm_app.config import Config, ConfigError, Scalar
from fedddpm_app.launch.resources import check_resources, joins_cluster, ray_temporary_folder

OUTPUT_MB, CACHE_MB, STATE_MB = 10, 1, 1  # the run directory of the demo has 6 MB
_RAY_MB = 20
_SOCKET_BYTES = (104 if sys.platform == "darwin" else 108) - 1
_RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"  # with the largest process id
_OPEN_FILES = 512
_LOOPBACK = "127.0.0.1"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 # only its room is looked at
_PROBE_BYTES = 64 * 1024  # a disk or a quota may be full although some room is reported


def check_folder(setting: str, folder: Path, room_mb: int) -> None:
    """Raise ``ConfigError`` unless a folder, or the folder that it would be created in, has room and can be written.

    Parameters
    ----------
    setting : str
        The key or environment variable that sets the folder, with its value.
    folder : Path
        An absolute path; it need not exist.
    room_mb : int
        Free space that the run needs at least, in MB.
    """
    fix = f"give a writable folder with {room_mb} MB or more"
    try:
        parent = next(path for path in (folder, *folder.parents) if path.exists())
        if not parent.is_dir():
            raise ConfigError(f"{setting}: {folder} cannot be made ({parent} is not a folder); {fix}.")
        free_mb = shutil.disk_usage(parent).free / 1e6
        with tempfile.TemporaryFile(dir=parent, buffering=0) as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        raise ConfigError(f"{setting}: {folder} cannot be written ({error.strerror}); {fix}.") from error
    if free_mb < room_mb:
        raise ConfigError(f"{setting}: {folder} has only {free_mb:.1f} MB of free space; {fix}.")


def check_temporary_folder() -> None:
    """Raise ``ConfigError`` unless Python finds a folder for temporary files."""
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise ConfigError(
            f'TMPDIR = "{os.environ.get("TMPDIR", "")}": no folder for temporary files can be written, /tmp neither; '
            "set TMPDIR to a writable folder."
        ) from error


def check_simulation(config: Config, federation: Mapping[str, Scalar]) -> None:
    """Raise ``ConfigError`` if Ray or Flower cannot start a simulation here."""
    check_resources(config, federation)
    _check_open_files()
    _check_loopback()
    if not joins_cluster():
        _check_ray_folder()
        _check_shared_memory()


def _check_ray_folder() -> None:
    name, folder = ray_temporary_folder()
    length, longest = len(os.fsencode(folder)), _SOCKET_BYTES - len(_RAY_SOCKET)
    fix = f"set {name} to a folder such as /tmp, or use --engine inprocess"
    if not Path(folder).is_absolute():
        raise ConfigError(f'{name} = "{folder}" is not an absolute path, but every process of Ray needs it: {fix}.')
    if length > longest:
        raise ConfigError(
            f'{name} = "{folder}" has {length} bytes, which is too long: Ray makes sockets in it, and the path of a '
            f"socket has at most {_SOCKET_BYTES} bytes; set RAY_TMPDIR to a folder of at most {longest} bytes, such as "
            "/tmp, or use --engine inprocess."  # noqa: S108 # a text
        )
    check_folder(f'{name} = "{folder}"', Path(folder), _RAY_MB)


def _check_shared_memory() -> None:
    """Refuse shared memory that cannot be written; if it is only full, Ray and the transport use files instead."""
    if not sys.platform.startswith("linux"):
        return
    try:
        with tempfile.TemporaryFile(dir=_SHARED_MEMORY):
            pass
    except OSError as error:
        raise ConfigError(
            f"{_SHARED_MEMORY} cannot be written ({error.strerror}), but Ray keeps its objects there: mount it "
            "writable (docker run --shm-size=1g), or use --engine inprocess."
        ) from error


def _check_open_files() -> None:
    """Refuse a low limit of open files. Ray itself raises the soft limit to the hard limit."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < _OPEN_FILES:
        raise ConfigError(
            f"ulimit -n = {limit} allows too few open files for Ray: raise the hard limit to {_OPEN_FILES} or more "
            "(ulimit -Hn 4096, docker run --ulimit nofile=4096), or use --engine inprocess."
        )


def _check_loopback() -> None:
    try:
        with socket.create_server((_LOOPBACK, 0)) as server:
            socket.create_connection(server.getsockname(), timeout=5).close()
    except OSError as error:
        raise ConfigError(
            f"{_LOOPBACK} cannot be used ({error.strerror or error}), but Flower and Ray talk over this address: bring "
            "the loopback interface up (ip link set lo up), or use --engine inprocess."
        ) from error
