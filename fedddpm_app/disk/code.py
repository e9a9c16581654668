"""What code and what settings a process runs with: digests that two sides can compare, and the versions of packages."""

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

_PACKAGES = ("fedddpm-app", "flwr", "ray", "torch", "diffusers", "datasets", "flwr-datasets", "numpy")
_PACKAGE = Path(__file__).parents[1]


@cache
def code_digest(package: Path = _PACKAGE) -> str:
    """Return the SHA-256 of a package's Python files, by default this one's: names and contents, in their order."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py"), key=lambda each: each.relative_to(package).as_posix()):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def settings_digest(settings: Mapping[str, object]) -> str:
    """Return the SHA-256 of settings as JSON with sorted keys: equal for equal settings."""
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that a run's results depend on."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def describe_code(settings: Mapping[str, object]) -> dict[str, object]:
    """Return digests of a run config and of the app's code, and the versions, for a line of a security log."""
    return {
        "config_sha256": settings_digest(settings),
        "code_sha256": code_digest(),
        "versions": {"python": platform.python_version(), **package_versions()},
    }
