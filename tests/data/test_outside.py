"""What a data set of somebody else names outside of its folder is not read."""

import datasets
import numpy as np
import pytest

from fedddpm_app.config import ConfigError
from fedddpm_app.data.sources import load_local
from fedddpm_app.disk.arrow import check_saved
from tests.data.conftest import noise, picture, table_of


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
@pytest.mark.parametrize("place", ["outside", "link", "inside", "relative", "above", "from here"])
def test_a_table_names_only_pictures_of_its_folder(tmp_path, monkeypatch, kind, place):
    monkeypatch.chdir(tmp_path)
    folder, secret = tmp_path / "data", tmp_path / "patient.png"
    folder.mkdir()
    picture(np.random.default_rng(0)).save(secret)
    picture(np.random.default_rng(1)).save(folder / "own.png")
    (folder / "link.png").symlink_to(secret)
    named = {"outside": secret, "link": folder / "link.png", "inside": folder / "own.png"}
    path = str((named | {"relative": "own.png", "above": "../patient.png", "from here": "data/own.png"})[place])
    rows = datasets.Dataset.from_dict({"image": [{"bytes": None, "path": path}] * 30})
    if kind == "parquet":
        rows.to_parquet(str(folder / "train.parquet"))
    else:
        rows.save_to_disk(str(folder))
    read = load_local(f"path:{folder}")["train"].read
    if place in ("inside", "relative", "from here"):
        assert read(0).size
        return
    with pytest.raises(ValueError, match="outside of the folder of the data set"):
        read(0)


@pytest.mark.parametrize("name", ["../elsewhere/data-00000-of-00001.arrow", "/etc/passwd"])
def test_a_saved_data_set_names_only_files_of_its_folder(tmp_path, name):
    for folder in ("elsewhere", "data"):
        table_of(noise(30)).save_to_disk(str(tmp_path / folder))
    state = tmp_path / "data" / "state.json"
    state.write_text(state.read_text().replace("data-00000-of-00001.arrow", name))
    with pytest.raises(ConfigError, match="outside of it"):
        load_local(f"path:{tmp_path / 'data'}")


def test_the_splits_of_a_saved_data_set_are_its_folders(tmp_path):
    datasets.DatasetDict(train=table_of(noise(30))).save_to_disk(str(tmp_path / "data"))
    index = tmp_path / "data" / "dataset_dict.json"
    index.write_text('{"splits": ["../elsewhere"]}')
    with pytest.raises(ValueError, match="outside of it"):
        check_saved(tmp_path / "data")
