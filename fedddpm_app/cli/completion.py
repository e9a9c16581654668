"""Completion of keys and values in the text of `--run-config`, for bash, zsh and fish."""

import re
from pathlib import Path

from fedddpm_app.algorithms import REGISTRY
from fedddpm_app.config.reference import choices, list_keys

_LAST_WORD = re.compile(r"(?s)^(.*[\s,;])?([^\s,;]*)$")


def complete_pairs(incomplete: str) -> list[tuple[str, str]]:
    """Return the texts that ``incomplete`` may become, with a help for each: TOML files, keys, values of a key."""
    found = _LAST_WORD.match(incomplete)
    before, word = (found.group(1) or "", found.group(2)) if found else ("", incomplete)
    key, has_value, value = word.partition("=")
    if has_value:
        quote = value[:1] if value[:1] in ("'", '"') else ""
        fitting = [choice for choice in _values(key) if choice.startswith(value.strip(quote or None))]
        return [(f"{before}{key}={quote}{choice}{quote}", "") for choice in fitting]
    given = set(re.findall(r"([\w-]+)\s*=", before))
    keys = [key for key in list_keys() if key.name.startswith(word) and key.name not in given]
    texts = [(f"{before}{key.name}=", key.meaning) for key in keys]
    if len(keys) == 1:  # with a second text, the shell does not end the word after "="
        name, default = keys[0].name, keys[0].default
        texts += [(f"{before}{name}={value}", "") for value in _values(name) or [str(default) or '""']]
    return texts + ([] if before else _files(word))


def _values(key: str) -> list[str]:
    return [*REGISTRY] if key == "algorithm" else choices(key)


def _files(beginning: str) -> list[tuple[str, str]]:
    """Return the TOML files and folders whose path starts so."""
    folder = Path(beginning) if beginning.endswith("/") else Path(beginning).parent
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml" or path.is_dir())
    except OSError:
        return []
    texts = [f"{path}/" if path.is_dir() else str(path) for path in paths if not path.name.startswith(".")]
    return [(text, "a file of keys" if text.endswith(".toml") else "") for text in texts if text.startswith(beginning)]
