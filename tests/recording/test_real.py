"""The sheet of real images, with which a reader compares generated ones."""

from pathlib import Path

import pytest
import torch

from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.recording.samples import save_real
from fedddpm_app.recording.sheets import read_tiles


@pytest.mark.parametrize(("labels", "shown"), [([0, 1, 1, 0, 1, 1], [0, 3, 1, 2]), (None, [0, 2, 3, 5])])
def test_has_as_many_of_each_class(tmp_path: Path, labels: list[int] | None, shown: list[int]) -> None:
    images = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 1, 64, 64) * 40
    known = None if labels is None else torch.tensor(labels)
    save_real(ImageTensors(images, known), tmp_path / "real.png", 4, "Real images", ["cat", "dog"])
    tiles = [int(tile.convert("L").getpixel((32, 32))) // 40 for tile in read_tiles(tmp_path / "real.png")]
    assert tiles[: len(shown)] == shown
