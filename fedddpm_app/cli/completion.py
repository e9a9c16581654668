"""Completion of keys and values in the text of `--run-config`, for bash, zsh and fish."""

import re
from pathlib import Path

_LAST_WORD = re.compile(r"(?s)^(.*[\s,;])?([^\s,;]*)$")


def complete_pairs(incomplete: str) -> list[tuple[str, str]]:
    """Return the texts that ``incomplete`` may become, with a help for each: TOML files, keys, values of a key."""
    from fedddpm_app.algorithms import REGISTRY
    from fedddpm_app.config.reference import choices, list_keys

    found = _LAST_WORD.match(incomplete)
    before, word = (found.group(1) or "", found.group(2)) if found else ("", incomplete)
    key, has_value, value = word.partition("=")
    if has_value:
        quote = value[:1] if value[:1] in ("'", '"') else ""
        values = [*REGISTRY] if key == "algorithm" else choices(key)
        fitting = [choice for choice in values if choice.startswith(value.strip(quote or None))]
        return [(f"{before}{key}={quote}{choice}{quote}", "") for choice in fitting]
    given = set(re.findall(r"([\w-]+)\s*=", before))
    keys = [(f"{before}{each.name}=", each.meaning) for each in list_keys() if each.name not in given]
    return [each for each in keys if each[0].startswith(incomplete)] + ([] if before else _files(word))


def _files(beginning: str) -> list[tuple[str, str]]:
    """Return the TOML files and folders whose path starts so."""
    folder = Path(beginning) if beginning.endswith("/") else Path(beginning).parent
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".toml" or path.is_dir())
    except OSError:
        return []
    texts = [f"{path}/" if path.is_dir() else str(path) for path in paths if not path.name.startswith(".")]
    return [(text, "a file of keys" if text.endswith(".toml") else "") for text in texts if text.startswith(beginning)]
