"""The names in a run directory; those of the records of nodes and peers are in ``federation`` and ``peers``."""

import re
from collections.abc import Iterator
from pathlib import Path

CONFIG = "config.json"  # the run config, the versions, the digests of the data
STATS = "stats.jsonl"  # a line per phase and round
SUMMARY = "summary.json"  # the status, and the results
LOG = "log.txt"
AUDIT = "audit.json"
REPORT = "report.html"
AUXILIARY = "auxiliary"  # the auxiliary set, and its sheets
SAMPLES = "samples"  # the sheets of rounds
PLOTS = "plots"
CHECKPOINTS = "checkpoints"
CLIENT_STATE = "client-state"  # of the simulated clients of `fedddpm run`
TRACKING = "tracking"  # the files of trackers
UNFINISHED = "unfinished"  # finished pieces of a phase, which a resumed run needs
SCRATCH = "scratch"  # clients' models and replies, of one process

_ROUND_SHEET = re.compile(r"round-(\d+)(?:-(.+))?\.png")
_CLIENT_SHEET = re.compile(r"client-(\d+)\.png")


def round_sheet(folder: Path, server_round: int, name: str = "") -> Path:
    """Return the sheet of a round in ``samples``; ``name`` identifies one of several models."""
    return folder / f"round-{server_round:04d}{name and '-'}{name}.png"


def round_sheets(folder: Path) -> Iterator[tuple[int, str, Path]]:
    """Yield the round, the name of the model, and the path of each sheet in ``samples``, by the names of the files."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := _ROUND_SHEET.fullmatch(path.name):
            yield int(match[1]), match[2] or "", path


def auxiliary_sheet(folder: Path, client: int) -> Path:
    """Return the sheet of a client's images in ``auxiliary``."""
    return folder / f"client-{client:04d}.png"


def auxiliary_sheets(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yield the client and the path of each sheet in ``auxiliary``, by the names of the files."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := _CLIENT_SHEET.fullmatch(path.name):
            yield int(match[1]), path
