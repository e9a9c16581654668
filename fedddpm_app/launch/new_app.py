"""Write a new app folder: the apps, the settings with their comments, an example algorithm and a README."""

import re
import shutil
import tomllib
from pathlib import Path

from fedddpm_app.config import ConfigError, packaged_app

EXAMPLE, CLASS = "l1_proximal", "L1Proximal"
_COPIED = ("client_app.py", "server_app.py", f"examples/{EXAMPLE}.py", "LICENSE")
_LONGEST_NAME = 32  # of an app in Flower
_IGNORED = ("runs/", ".venv/", "venv/", "__pycache__/")
_HEAD = """\
[project]
name = "{name}"
version = "0.1.0"
description = "Federated training of a diffusion model."
license = {{ file = "LICENSE" }}
# Every host also needs the package fedddpm-app {version}: install its wheel. It is not in this list, because Flower
# downloads what is in it.
dependencies = ["{flwr}"]

[tool.flwr.app]
publisher = "fedddpm"
fab-format-version = 1
flwr-version-target = "{target}"
fab-include = ["**/*.py", "README.md", "LICENSE"]  # Flower sends these files to every host

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

# All settings of a run; `--run-config 'key=value'` overrides any of them.
"""
_README = """\
# {name}

A Flower app that trains a diffusion model over data that stays with its owners, with an algorithm that you can change.
It needs the package `fedddpm-app` {version}.

| file | content |
|---|---|
| `{example}.py` | the algorithm: `{cls}` is the server half, `{cls}Hook` the client half |
| `pyproject.toml` | all settings; `algorithm = "{example}:{cls}"` names the class |
| `client_app.py`, `server_app.py` | Flower's two apps, which call the package |

```
fedddpm run                                                              # in this folder
fedddpm run --engine inprocess -c 'num-rounds=1 local-steps=20'          # one process: breakpoints work
```

With plain Flower:

```
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1                    # use this environment
flwr run . --stream --federation-config 'num-supernodes=4 client-resources-num-cpus=1'
```

`LICENSE` is the licence of the package, from which these files are copies.
"""


def write_new_app(folder: Path) -> None:
    """Write a new app into a folder, which is created if it is not there.

    The apps and the example are copies of this package's files, and the settings are its settings; only ``algorithm``
    and ``algorithm-options`` have other values.

    Parameters
    ----------
    folder : Path
        A new or an empty folder; the app has its name, as far as Flower allows.

    Raises
    ------
    ConfigError
        If the folder is not empty, or cannot be written.
    """
    source = packaged_app()
    text = (source / "pyproject.toml").read_text(encoding="utf-8")
    words = {"name": app_name(folder), "example": EXAMPLE, "cls": CLASS, **_package_facts(text)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} is not an empty folder: give a new or an empty one.")
        for name in _COPIED:
            shutil.copyfile(source / name, folder / Path(name).name)
        (folder / "pyproject.toml").write_text(_HEAD.format(**words) + _settings(text), encoding="utf-8")
        (folder / "README.md").write_text(_README.format(**words), encoding="utf-8")
        (folder / ".gitignore").write_text("\n".join(_IGNORED) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}): give another folder.") from error


def app_name(folder: Path) -> str:
    """Return the name of a folder as Flower wants an app's name: letters, digits and hyphens, a letter first."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", folder.resolve().name)
    return re.sub(r"^[^A-Za-z]+", "", plain)[:_LONGEST_NAME].strip("-") or "my-app"


def _package_facts(text: str) -> dict[str, str]:
    content = tomllib.loads(text)
    flwr = next(name for name in content["project"]["dependencies"] if name.startswith("flwr["))
    target = content["tool"]["flwr"]["app"]["flwr-version-target"]
    return {"version": content["project"]["version"], "flwr": flwr, "target": target}


def _settings(text: str) -> str:
    """Return the table ``[tool.flwr.app.config]`` of a pyproject.toml with its comments, for the example algorithm."""
    table = re.search(r"^\[tool\.flwr\.app\.config\]\n.*?(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE)
    settings = table.group().rstrip("\n") + "\n" if table else ""
    for key, value in (("algorithm", f"{EXAMPLE}:{CLASS}"), ("algorithm-options", "strength=0.0001")):
        found = re.search(rf'^{key} = "[^"]*" *', settings, re.MULTILINE)  # up to its comment
        if found:
            line = f'{key} = "{value}" '.ljust(len(found.group()))
            settings = settings[: found.start()] + line + settings[found.end() :]
    return settings
