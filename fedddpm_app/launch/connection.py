"""The connection to a SuperLink: its section in Flower's config.toml, and whether something answers at its address."""

import http.client
import os
import socket
import tomllib
import urllib.request
from pathlib import Path
from typing import Any

from fedddpm_app.config import ConfigError
from fedddpm_app.federation.flower_internals import get_flwr_home

_SECONDS = 5.0
_LOCAL_PORT = "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"  # of the SuperLink that `flwr` starts for the address ":local:"
_DEFAULT_LOCAL_PORT = "39091"


def check_connection(name: str) -> str:
    """Return the address of a connection of Flower's config.toml; an empty name is Flower's default.

    Raises
    ------
    ConfigError
        When the file cannot be read, or has no connection of this name.
    """
    path, known = _read_connections()
    names = [key for key, value in known.items() if isinstance(value, dict)]
    if name and name not in names:
        raise ConfigError(
            f'--superlink = "{name}": {path} has no [superlink.{name}], only {", ".join(names)}; add this section with '
            "its address."
        )
    section = known.get(name or str(known.get("default")), {})
    return str(section.get("address", "")) if isinstance(section, dict) else ""


def check_reachable(name: str) -> None:
    """Raise ``ConfigError`` if nothing answers at the address of a connection, or another program does.

    An address behind a proxy is not tried.
    """
    address = check_connection(name)
    where = f'--superlink = "{name}"'
    if address.startswith(":local"):
        _check_local_port(where)
        return
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdigit() or (urllib.request.getproxies() and not urllib.request.proxy_bypass(host)):
        return
    try:
        socket.create_connection((host, int(port)), timeout=_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{where}: nothing answers at {address} ({_reason(error)}); start the SuperLink, or correct its address in "
            f"{get_flwr_home() / 'config.toml'}."
        ) from error


def _read_connections() -> tuple[Path, dict[str, Any]]:
    """Return the path of Flower's config.toml, and its table of connections."""
    try:
        path = get_flwr_home() / "config.toml"
    except RuntimeError as error:  # no HOME, and no entry in the list of users
        raise ConfigError(f"FLWR_HOME is not set, and there is no home folder ({error}): set one of them.") from error
    try:
        return path, dict(tomllib.loads(path.read_text(encoding="utf-8")).get("superlink", {}))
    except FileNotFoundError as error:
        fix = "create it with `flwr config list`, and add [superlink.NAME]"
        raise ConfigError(f"{path} cannot be read ({error.strerror}): {fix}.") from error
    except OSError as error:
        fix = "make it readable, or set FLWR_HOME to another folder with a config.toml"
        raise ConfigError(f"{path} cannot be read ({error.strerror}): {fix}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read ({error}): correct it as TOML.") from error


def _check_local_port(where: str) -> None:
    """Refuse a port of the local SuperLink that another program uses."""
    port = os.environ.get(_LOCAL_PORT, _DEFAULT_LOCAL_PORT)
    try:
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=_SECONDS)
        connection.request("GET", "/health")
        is_flower = connection.getresponse().status == http.client.OK
    except ConnectionRefusedError:
        return  # the port is free, and `flwr` starts a SuperLink
    except (OSError, ValueError, OverflowError, http.client.HTTPException):
        is_flower = False
    if not is_flower:
        raise ConfigError(
            f"{where}: port {port}, where `flwr` expects its local SuperLink, cannot be used or belongs to another "
            f"program; set {_LOCAL_PORT} to a free port."
        )


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
