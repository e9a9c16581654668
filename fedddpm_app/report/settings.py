"""The configuration of a run: what differs from the defaults first, the command that repeats it, the versions."""

import shlex
from collections.abc import Mapping
from typing import Any

from fedddpm_app.config import Scalar, changed_keys, default_run_config, known_keys
from fedddpm_app.config.reference import list_keys
from fedddpm_app.report.blocks import Table, Text, cell
from fedddpm_app.report.facts import resumes
from fedddpm_app.report.reading import StoredRun, as_json


def settings(run: StoredRun) -> list[Table | Text]:
    """Return the keys that differ from the defaults, the command, all keys, and the versions."""
    if not run.config:
        return [Text(["config.json cannot be read."])]
    defaults, changed = default_run_config(), changed_keys(run.config)
    meanings = {key.name: key.meaning for key in list_keys()}
    rows = [
        [key, as_json(value), as_json(defaults[key]) if key in defaults else "–", meanings.get(key, "")]
        for key, value in changed.items()
    ]
    everything = [[key, as_json(value), meanings.get(key, "")] for key, value in run.config.items()]
    found: list[Table | Text] = []
    if rows:
        found.append(Table(["key", "value", "default", "meaning"], rows, "Keys that differ from the defaults"))
    else:
        found.append(Text(["Every key has its default value."]))
    found += [
        Text(["This command repeats the run, with the same version of the app:"]),
        Text([command_of(run.config)], code=True),
        Table(["key", "value", "meaning"], everything, f"All {len(everything)} keys", folded=True),
        Table(["", "version"], _versions(run.about), "Versions and platform", folded=True),
    ]
    resumed = resumes(run.about)
    return [*found, *([Table(["resumed after round", "changed keys"], resumed, "Resumed")] if resumed else [])]


def command_of(config: Mapping[str, Any]) -> str:
    """Return the command that repeats a run, in printable characters; a path in it is only its last name."""
    known = known_keys()
    changed = {key: value for key, value in changed_keys(config).items() if key in known and isinstance(value, Scalar)}
    if not changed:
        return "fedddpm run"
    return f"fedddpm run -c {shlex.quote(' '.join(f'{key}={_quoted(value)}' for key, value in changed.items()))}"


def _quoted(value: object) -> str:
    """Return a value as it stands in TOML; what a terminal or a reader would not see as it is, is escaped."""
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in as_json(value))


def _versions(about: Mapping[str, Any]) -> list[list[str]]:
    packages = about.get("packages")
    clean = " with local changes" if about.get("git_clean") is False else ""
    rows = [["python", cell(about.get("python"))], ["git commit", f"{cell(about.get('git_commit'))}{clean}"]]
    listed = packages.items() if isinstance(packages, dict) else ()
    rows += [[cell(name), cell(version)] for name, version in listed]
    return [*rows, ["platform", cell(about.get("platform"))]]
