"""The sample sheets of a grid's rows side by side: each column starts from the same noise."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fedddpm_app.apportion import spread_out
from fedddpm_app.compare.cells import Cell
from fedddpm_app.recording.layout import SAMPLES, round_sheets
from fedddpm_app.recording.sheets import read_tiles, save_strip

_COLUMNS = 20
_LARGEST_TILE = 64  # pixels


def save_side_by_side(cells: Sequence[Cell], path: Path) -> bool:
    """Write a row of images per cell, from the sheets of their last rounds; return whether there are any.

    A run without a global model shows the model of its first client.

    Parameters
    ----------
    cells : sequence of Cell
        Complete cells with the same seed and condition.
    path : Path
        The PNG.
    """
    rows: list[tuple[str, list[Image.Image]]] = []
    for cell in cells:
        found = last_sheet(cell.directory)
        if found is not None:
            sheet, name = found
            rows.append((f"{cell.setting.line.label}{name and f' ({name})'}", read_tiles(sheet)))
    if not rows:
        return False
    shown = spread_out(min(len(tiles) for _, tiles in rows), _COLUMNS)
    about = f"{cells[0].setting.condition}, seed {cells[0].seed}"
    title = f"Images of the final models: {about}. Each column starts from the same noise."
    save_strip([(label, [tiles[k] for k in shown]) for label, tiles in rows], path, title, _LARGEST_TILE)
    return True


def last_sheet(directory: Path) -> tuple[Path, str] | None:
    """Return the sheet of a run's last round and the name of its model, the first of several; None without a sheet."""
    found = list(round_sheets(directory / SAMPLES))
    if not found:
        return None
    last = max(server_round for server_round, _, _ in found)
    _, name, path = next(each for each in found if each[0] == last)
    return path, name
