"""A separate Flower app that sends a run directory from the server's host to the user who starts it.

A user of a deployment has only Flower's connection, which carries the log of a run's ServerApp. `fedddpm fetch`
therefore starts this module as an app: it writes the files of one run directory to its log, as lines of base64 with
their SHA-256, and `cli.receiving` assembles the files. The module imports only Flower and the standard library, because
the server's host may not have our packages.
"""

import base64
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

MARK = "[fedddpm-delivery]"
_CHUNK_BYTES = 96 * 1024
_BURST_CHARACTERS = 3_000_000  # then a pause: Flower sends the log in requests, a few per second
_BURST_SECONDS = 0.3
_LAST_SECONDS = 3.0

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Send the files of ``directory``, which must be the run directory of the run ``of-run``."""
    directory, run_id = Path(str(context.run_config["directory"])), str(context.run_config["of-run"])
    check_directory(directory, run_id)
    send(lines_of(directory, float(context.run_config["largest-mb"])))


def send(lines: Iterable[str], pause: Callable[[float], None] = time.sleep) -> None:
    """Write lines as fast as Flower takes them, and wait for the last lines.

    Lines that Flower has not taken when the app ends are lost.
    """
    written = since = 0
    for line in lines:
        sys.stdout.write(line + "\n")
        written, since = written + len(line), since + len(line)
        if since > _BURST_CHARACTERS:
            pause(_BURST_SECONDS)
            since = 0
    sys.stdout.flush()
    pause(_LAST_SECONDS + _BURST_SECONDS * written / _BURST_CHARACTERS / 10)


def check_directory(directory: Path, run_id: str) -> None:
    """Raise ``ValueError`` unless a folder is the run directory of the run ``run_id``; no other folder is sent.

    A run directory that was resumed is that of several runs.
    """
    try:
        about = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{directory} is not a run directory on the server's host: {error}") from error
    if run_id not in [about.get("run_id"), *(entry.get("run_id") for entry in about.get("resumed", []))]:
        raise ValueError(f"{directory} is the run directory of the run {about.get('run_id')}, not {run_id}")


def lines_of(directory: Path, largest_mb: float) -> Iterator[str]:
    """Yield the lines that carry a run directory; a file larger than ``largest_mb`` (10^6 bytes) is only named."""
    sent = 0
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        name, size = path.relative_to(directory).as_posix(), path.stat().st_size
        if size > largest_mb * 1e6:
            yield _line("left", {"path": name, "bytes": size})
            continue
        sent += 1
        digest = hashlib.sha256()
        yield _line("file", {"path": name, "bytes": size})
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                yield f"{MARK} data {base64.b64encode(chunk).decode('ascii')}"
        yield _line("done", {"path": name, "sha256": digest.hexdigest()})
    yield _line("end", {"files": sent})


def _line(kind: str, about: dict[str, object]) -> str:
    return f"{MARK} {kind} {json.dumps(about)}"
