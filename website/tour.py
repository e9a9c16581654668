"""Runs the tour, and stores its outputs without the places and times of this machine.

``python -m website.tour`` writes ``examples/tour.ipynb`` anew.
"""

import os
import re
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from website.repository import NOTEBOOK, ROOT

_MINUTES = 20


def execute(folder: Path) -> Any:
    """Return the notebook after all its cells have run in a folder, which gets ``tour/``.

    Raises
    ------
    CellExecutionError
        When a cell fails.
    """
    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=60 * _MINUTES, record_timing=False, resources={"metadata": {"path": str(folder)}}
    )
    try:
        client.execute(env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(_private(folder / "cache"))})
    except CellExecutionError as error:
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                error.add_note(output.get("data", {}).get("text/plain", ""))
        raise
    return notebook


def _private(folder: Path) -> Path:
    """Return a new folder of this user alone, so that a run has no note on the caches of this machine."""
    folder.mkdir(mode=0o700)
    return folder


def without_places(notebook: Any, folder: Path) -> Any:
    """Return a notebook whose outputs name no absolute path: those in ``folder`` become relative."""
    place = re.compile(re.escape(str(folder.resolve())) + r"/?|" + re.escape(str(folder)) + r"/?")
    text = nbformat.writes(notebook)
    return nbformat.reads(place.sub("", text), as_version=4)


def main() -> None:
    """Write the notebook with new outputs, and print the seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tour-") as name:
        done = without_places(execute(Path(name)), Path(name))
    done.metadata.pop("widgets", None)
    done.metadata["language_info"] = {"name": "python"}
    nbformat.write(done, ROOT / NOTEBOOK)
    print(f"{NOTEBOOK}: {time.monotonic() - began:.0f} s")  # noqa: T201


if __name__ == "__main__":
    main()
