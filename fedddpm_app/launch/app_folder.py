"""The folder of a Flower app: what Flower can bundle of it, and its two apps."""

import importlib
import shutil
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedddpm_app.config import ConfigError, packaged_app
from fedddpm_app.disk.owned import OwnedFolder

BUNDLE_PREFIX = "fedddpm-app-"
_PACKAGE = Path(__file__).resolve().parent.parent
_App = TypeVar("_App", ServerApp, ClientApp)


@contextmanager
def bundled(folder: Path) -> Iterator[Path]:
    """Yield the folder of an app for `flwr run`, which sends the files of this folder to every host.

    In a wheel, the files of this package's own app lie inside the package. A temporary copy then puts the package next
    to them, as in a checkout, so that hosts need only the dependencies. Any other folder is yielded as it is.
    """
    if folder != packaged_app() or _PACKAGE not in folder.parents:
        yield folder
        return
    with OwnedFolder.create(BUNDLE_PREFIX) as parent:
        copy = parent / "fedddpm"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("__pycache__"))
        skipped = shutil.ignore_patterns("__pycache__", folder.name)
        shutil.copytree(_PACKAGE, copy / _PACKAGE.name, ignore=skipped)
        yield copy


def load_apps(folder: Path) -> tuple[ServerApp, ClientApp]:
    """Import the ServerApp and the ClientApp that an app's ``[tool.flwr.app.components]`` names, as Flower does.

    Raises
    ------
    ConfigError
        If a component is missing, cannot be imported, or is not an app.
    """
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    content = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    components = content["tool"]["flwr"]["app"].get("components", {})
    return _load(components, "serverapp", ServerApp), _load(components, "clientapp", ClientApp)


def _load(components: dict[str, str], key: str, kind: type[_App]) -> _App:
    name = components.get(key, "")
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f'{key} = "{name}" in [tool.flwr.app.components] cannot be imported ({error}): name a module of the '
            f'app\'s folder and its {kind.__name__}, as "module:app".'
        ) from error
    if not isinstance(found, kind):
        raise ConfigError(f'{key} = "{name}" in [tool.flwr.app.components] is not a {kind.__name__}: name one.')
    return found
