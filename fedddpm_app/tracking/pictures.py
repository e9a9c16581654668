"""The list of the pictures that trackers got, so that a resumed run gives them again."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedddpm_app.disk.bounded import check_size
from fedddpm_app.limits import LINES_BYTES

_NAME = "pictures.jsonl"
_OF_RUN = re.compile(r"(samples|auxiliary)/[\w-]+\.png")


@dataclass(frozen=True)
class Picture:
    """A PNG in a run directory.

    Attributes
    ----------
    path : Path
        The PNG.
    name : str
        Its name at trackers, the same over the rounds.
    server_round : int
        The round that it belongs to; 0 before the rounds.
    num_lines : int
        The number of lines of ``stats.jsonl`` before it.
    of_clients : bool
        Whether it shows clients' images, or images of clients' own models.
    """

    path: Path
    name: str
    server_round: int
    num_lines: int
    of_clients: bool


class PictureList:
    """The list in the folder of the trackers; one that cannot be read or written costs a resumed run its pictures.

    Parameters
    ----------
    run : Path
        The run directory.
    folder : Path
        The folder of its trackers.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        self._run = run
        self._path = folder / _NAME

    def add(self, picture: Picture) -> None:
        """Append a picture."""
        entry = {**vars(picture), "path": picture.path.relative_to(self._run).as_posix()}
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def keep(self, num_lines: int) -> list[Picture]:
        """Return the pictures from before the last of ``num_lines`` lines, and forget the others."""
        try:
            check_size(self._path, LINES_BYTES)
            lines = self._path.read_text(encoding="utf-8").splitlines()
            found = [self._picture(json.loads(line)) for line in lines]
        except (OSError, LookupError, TypeError, ValueError, RecursionError):
            found = []
        kept = [picture for picture in found if picture.num_lines < num_lines and picture.path.is_file()]
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        for picture in kept:
            self.add(picture)
        return kept

    def _picture(self, entry: Mapping[str, Any]) -> Picture:
        if not _OF_RUN.fullmatch(entry["path"]):
            raise ValueError("it is not a picture of a run")
        path = self._run / entry["path"]
        place = int(entry["server_round"]), int(entry["num_lines"])
        return Picture(path, str(entry["name"]), *place, of_clients=entry["of_clients"] is not False)
