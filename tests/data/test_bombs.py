"""Bombs among pictures and data sets: what a few bytes state or imply is bounded before memory is taken."""

import gzip
import io
import json
import struct
import tracemalloc

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from fedddpm_app.config import ConfigError
from fedddpm_app.data import decoding
from fedddpm_app.data.idx import read_idx
from fedddpm_app.data.sources import load_local
from fedddpm_app.data.splits import Split
from fedddpm_app.data.store import load_stored
from fedddpm_app.data.tables import read_table
from fedddpm_app.recording.auxiliary_set import load_auxiliary_set
from tests.data.conftest import png
from tests.faults.mutations import MB, at_most, sparse


def read_picture(content, size=4):
    split = Split(datasets.Dataset.from_dict({"row": [0]}), lambda _: Image.open(io.BytesIO(content)), str)
    return decoding._read(split, 0, type("Config", (), {"image_size": size, "image_channels": 1}))


def test_a_small_png_of_many_pixels(tmp_path):
    content = png(13_300, 13_300, 1, 0, bytes(1663 * 13_300)).getvalue()
    assert len(content) < 30_000
    with at_most(MB):
        found = read_picture(content)
    assert "it has 176,890,000 pixels, above the limit of 67,108,864" in str(found)


def test_a_picture_within_a_picture_of_another_size():
    """An ICO file says 16 x 16, and holds a PNG of 10,000 x 10,000."""
    inner = png(10_000, 10_000, 1, 0, bytes(1251 * 10_000)).getvalue()
    entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22)
    with at_most(4 * MB):
        found = read_picture(struct.pack("<HHH", 0, 1, 1) + entry + inner)
    assert isinstance(found, ValueError), found


def test_many_frames_cost_as_much_as_the_first():
    frames = [Image.new("L", (64, 64), k % 250) for k in range(300)]
    for kind in ("GIF", "TIFF"):
        content = io.BytesIO()
        frames[0].save(content, kind, save_all=True, append_images=frames[1:])
        with at_most(4 * MB):
            pixels, *_ = read_picture(content.getvalue())
        assert pixels.max() == 0


def test_a_picture_of_4096_pixels_a_side_is_used(tmp_path):
    values = np.zeros((4096, 4096), np.uint16)
    values[:, 2048:] = 65535
    content = io.BytesIO()
    Image.fromarray(values).save(content, "PNG")
    tracemalloc.start()
    pixels, *_ = read_picture(content.getvalue())
    assert tracemalloc.get_traced_memory()[1] < 15 * values.size
    tracemalloc.stop()
    assert pixels[0, 0].tolist()[::3] == [0, 255]


def test_an_idx_file_that_unpacks_to_gigabytes(tmp_path):
    path = tmp_path / "train-images-idx3-ubyte.gz"
    count = 400_000
    head = struct.pack(">BBBB3I", 0, 0, 8, 3, count, 28, 28)
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(300):
            file.write(bytes(MB))
    with at_most(MB), pytest.raises(ValueError, match="unpacks to"):
        read_idx(path)


def test_a_label_table_that_unpacks_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("fedddpm_app.limits.TABLE_BYTES", 40 * MB)
    names = pyarrow.array([f"{k}.png" for k in range(3000)])
    text = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000), pyarrow.array(["x" * MB]))
    parquet.write_table(pyarrow.table({"file_name": names, "note": text}), tmp_path / "metadata.parquet")
    assert (tmp_path / "metadata.parquet").stat().st_size < MB
    with at_most(3 * MB), pytest.raises(ConfigError, match=r"metadata\.parquet.*more than"):
        read_table(tmp_path / "metadata.parquet")


@pytest.mark.parametrize("kind", ["own columns", "columns of nothing"])
def test_a_small_label_table_of_many_cells(tmp_path, monkeypatch, kind):
    """Rows that each name a column of their own, and columns that hold nothing: a cell takes memory in any case."""
    monkeypatch.setattr("fedddpm_app.limits.TABLE_CELLS", 10**6, raising=False)
    names = [f"{k}.png" for k in range(1500)]
    if kind == "own columns":
        path = tmp_path / "metadata.jsonl"
        path.write_text("\n".join(json.dumps({"file_name": name, name: 1}) for name in names))
    else:
        path = tmp_path / "metadata.parquet"
        empty = {f"c{k}": pyarrow.nulls(1500) for k in range(1000)}
        parquet.write_table(pyarrow.table({"file_name": names, **empty}), path)
    assert path.stat().st_size < MB
    with at_most(8 * MB), pytest.raises(ConfigError, match=r"metadata.*cells"):
        read_table(path)


def test_many_label_tables_of_many_columns(tmp_path, monkeypatch):
    """Tables in many folders: their columns together are those of every picture."""
    monkeypatch.setattr("fedddpm_app.limits.TABLE_COLUMNS", 110, raising=False)
    for k in range(2):
        folder = tmp_path / f"c{k}"
        folder.mkdir()
        Image.new("L", (4, 4)).save(folder / "1.png")
        names = ",".join(f"f{k}-{column}" for column in range(100))
        (folder / "metadata.csv").write_text(f"file_name,{names}\n1.png{',x' * 100}\n")
    with pytest.raises(ConfigError, match="201 columns"):
        load_local(f"path:{tmp_path}")


def test_a_label_table_with_a_long_first_line_is_damaged(tmp_path):
    (tmp_path / "metadata.csv").write_text("file_name," + ",".join(f"column{k}" for k in range(20_000)) + "\n")
    with pytest.raises(ConfigError, match=r"metadata\.csv is a damaged table"):
        read_table(tmp_path / "metadata.csv")


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_label_table_of_gigabytes(tmp_path, name):
    path = sparse(tmp_path / name, 4 * 2**30)
    with at_most(MB), pytest.raises(ConfigError, match="more than"):
        read_table(path)


def test_a_parquet_file_that_unpacks_to_gigabytes(tmp_path):
    rows = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000), pyarrow.array([bytes(MB)]))
    parquet.write_table(pyarrow.table({"image": rows}), tmp_path / "train.parquet")
    assert (tmp_path / "train.parquet").stat().st_size < MB
    with at_most(8 * MB), pytest.raises(ConfigError, match=r"train\.parquet.*unpacks to"):
        load_local(f"path:{tmp_path}")


FEATURES = {
    "a billion classes": {"_type": "ClassLabel", "num_classes": 10**9},
    "classes from a file": {"_type": "ClassLabel", "names_file": "/dev/zero"},
    "a nested billion": {"_type": "List", "feature": {"_type": "ClassLabel", "num_classes": 10**9}},
}


@pytest.mark.parametrize("kind", ["parquet", "arrow", "save_to_disk"])
@pytest.mark.parametrize("feature", FEATURES)
def test_features_that_state_more_than_they_hold(tmp_path, kind, feature):
    image = {"bytes": {"dtype": "binary", "_type": "Value"}, "path": {"dtype": "string", "_type": "Value"}}
    info = {"info": {"features": {"image": image, "label": FEATURES[feature]}}}
    table = pyarrow.table(
        {"image": [{"bytes": b"1", "path": None}] * 3, "label": [[0]] * 3 if "nest" in feature else [0] * 3}
    )
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    if kind == "parquet":
        parquet.write_table(table, tmp_path / "train.parquet")
    elif kind == "arrow":
        with (
            pyarrow.OSFile(str(tmp_path / "train.arrow"), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as w,
        ):
            w.write_table(table)
    else:
        saved_to_disk(tmp_path, FEATURES[feature])
    with at_most(8 * MB), pytest.raises(ConfigError, match="provide either num_classes, names or names_file"):
        load_local(f"path:{tmp_path}")


def saved_to_disk(folder, feature):
    columns = {"image": [b"1"], "label": [0]}
    datasets.Dataset.from_dict(columns).save_to_disk(str(folder))
    info = json.loads((folder / "dataset_info.json").read_text())
    info["features"]["label"] = feature
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_a_delivered_auxiliary_set_with_a_billion_classes(tmp_path, caplog):
    saved_to_disk(tmp_path / "dataset", FEATURES["a billion classes"])
    (tmp_path / "dataset.json").write_text("{}")
    with at_most(8 * MB):
        assert load_auxiliary_set(tmp_path) is None
    assert "provide either num_classes, names" in caplog.text


def test_a_cache_whose_header_states_gigabytes(data_config, folder_of_images, tmp_path):
    config = data_config(folder_of_images, image_size=8, image_channels=3, cache_dir=str(tmp_path / "cache"))
    first = load_stored(config)
    load_stored.cache_clear()
    (rows,) = (tmp_path / "cache").rglob("train.rows.npy")
    with rows.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (10**11,)})
    with at_most(8 * MB):
        again = load_stored(config)
    assert torch.equal(again["train"].data.images, first["train"].data.images)


def arrow_file(folder, table, kind, compression=None):
    new = {"stream": pyarrow.ipc.new_stream, "file": pyarrow.ipc.new_file}[kind]
    with new(
        str(folder / "train.arrow"), table.schema, options=pyarrow.ipc.IpcWriteOptions(compression=compression)
    ) as w:
        w.write_table(table)
    return folder / "train.arrow"


@pytest.mark.parametrize("kind", ["stream", "file"])
@pytest.mark.parametrize("which", ["compressed", "dictionary", "nested dictionary", "rows of nothing"])
def test_an_arrow_file_that_unpacks_to_gigabytes(tmp_path, kind, which):
    shared = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000), pyarrow.array([bytes(MB)]))
    table = {
        "compressed": pyarrow.table({"image": [bytes(64 * MB)]}),
        "dictionary": pyarrow.table({"image": shared}),
        "nested dictionary": pyarrow.table({"image": pyarrow.StructArray.from_arrays([shared], ["bytes"])}),
        "rows of nothing": pyarrow.table({"image": pyarrow.nulls(10**9)}),
    }[which]
    path = arrow_file(tmp_path, table, kind, "zstd" if which == "compressed" else None)
    assert path.stat().st_size < 2 * MB
    with at_most(8 * MB), pytest.raises(ConfigError, match=r"train\.arrow.*(compressed|share|10,000,000)"):
        load_local(f"path:{tmp_path}")


def test_an_arrow_file_with_labels_from_a_dictionary_is_used(tmp_path):
    labels = pyarrow.array(["cat", "dog"] * 10).dictionary_encode()
    content = png(8, 8, 8, 0, bytes(9 * 8)).getvalue()
    table = pyarrow.table({"image": [{"bytes": content, "path": None}] * 20, "label": labels})
    arrow_file(tmp_path, table, "stream")
    assert load_local(f"path:{tmp_path}")["train"].class_names == ["cat", "dog"]


@pytest.mark.parametrize("kind", ["arrow", "save_to_disk", "auxiliary"])
def test_a_picture_that_begins_and_ends_outside_its_file(tmp_path, kind, caplog):
    """A place far outside ends the process by a signal, and one that is near has bytes of something else."""
    cells = [{"bytes": letter * 37, "path": None} for letter in (b"a", b"b", b"c")]
    features = {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}}
    features["client"] = datasets.Value("int32")
    table = datasets.Dataset.from_dict({"image": cells, "client": [0] * 3}, features=datasets.Features(features))
    folder = tmp_path / "auxiliary" / "dataset" if kind == "auxiliary" else tmp_path
    table.save_to_disk(str(folder))
    path = folder / "data-00000-of-00001.arrow"
    content, stated = path.read_bytes(), struct.pack("<4i", 0, 37, 74, 111)
    assert stated in content
    path.write_bytes(content.replace(stated, struct.pack("<4i", 0, 37, 180, 111)))
    if kind == "arrow":
        for other in tmp_path.glob("*.json"):
            other.unlink()
    if kind == "auxiliary":
        (tmp_path / "auxiliary" / "dataset.json").write_text("{}")
        assert load_auxiliary_set(tmp_path / "auxiliary") is None
        assert "offset" in caplog.text
        return
    with pytest.raises(ConfigError, match="offset"):
        load_local(f"path:{tmp_path}")
