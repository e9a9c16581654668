"""Decoding, and the cache of what was decoded."""

import multiprocessing
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from fedddpm_app.config import ConfigError
from fedddpm_app.data import store
from fedddpm_app.data.store import cache_folder, load_stored
from tests.data.conftest import encoded, noise, picture, table_of


def test_bad_images_are_named_left_out_up_to_the_number_and_then_an_error(folder_of_images, data_config, stored):
    (folder_of_images / "cat" / "03.png").write_bytes(b"junk")
    whole = (folder_of_images / "dog" / "07.png").read_bytes()
    (folder_of_images / "dog" / "07.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"max-bad-images = 1, but .* cannot be read: .*(03|07)\.png") as error:
        stored(folder_of_images, image_channels=3, max_bad_images=1)
    assert error.value.public.startswith("max-bad-images = 1, but 2 or more images of this site cannot be read")
    assert ".png" not in error.value.public
    splits = stored(folder_of_images, image_channels=3, max_bad_images=2)
    assert sum(len(part.data) for part in splits.values()) == 58
    bad = [name for part in splits.values() for name in part.info.bad]
    assert sorted(name.split(".png")[0][-6:] for name in bad) == ["cat/03", "dog/07"]
    with pytest.raises(ConfigError, match="max-bad-images = 0"):  # although it is decoded now
        stored(folder_of_images, image_channels=3)


def test_rows_and_labels_stay_together_when_images_are_left_out(tmp_path, stored):
    pixels = noise(20)
    table = table_of(pixels, list(range(20)))
    broken = [{"bytes": b"junk" if k in (0, 7) else row["bytes"], "path": None} for k, row in enumerate(encoded(table))]
    table_of(broken, list(range(20))).to_parquet(tmp_path / "train.parquet")
    table_of(noise(5), [0] * 5).to_parquet(tmp_path / "test.parquet")
    split = stored(tmp_path, image_size=4, max_bad_images=2)["train"]
    kept = [k for k in range(20) if k not in (0, 7)]
    assert split.data.labels.tolist() == split.rows.tolist() == kept
    assert torch.equal(split.data.images[:, 0], torch.from_numpy(pixels[kept]))
    assert [name.split(" (")[0] for name in split.info.bad] == [f"row {k} of the train split" for k in (0, 7)]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_are_mixed_only_when_asked_for(folder_of_images, stored, channels):
    picture(np.random.default_rng(1), bands=1).save(folder_of_images / "cat" / "grey.png")
    with pytest.raises(ConfigError, match='holds 1 grey and 60 colour images: use mixed-channels = "convert"'):
        stored(folder_of_images, image_channels=channels)
    splits = stored(folder_of_images, image_channels=channels, mixed_channels="convert")
    assert splits["train"].data.images.shape[1] == channels


def test_images_are_decoded_once_and_again_when_the_folder_changes(folder_of_images, data_config, monkeypatch):
    data = data_config(folder_of_images, image_channels=3, num_classes=2)
    first = load_stored(data)
    load_stored.cache_clear()
    monkeypatch.setattr(store, "_build", None)  # nothing is built any more
    again = load_stored(data)
    assert torch.equal(first["train"].data.images, again["train"].data.images)
    assert first["train"].info == again["train"].info
    picture(np.random.default_rng(9)).save(folder_of_images / "cat" / "new.png")
    load_stored.cache_clear()
    with pytest.raises(TypeError):
        load_stored(data)


def test_a_link_to_nowhere_does_not_stop_the_rest(folder_of_images, stored):
    (folder_of_images / "cat" / "gone.png").symlink_to(folder_of_images / "nowhere.png")
    splits = stored(folder_of_images, image_channels=3, max_bad_images=1)
    assert sum(len(part.data) for part in splits.values()) == 60


def test_a_filled_cache_is_read_without_writing(folder_of_images, data_config, monkeypatch):
    data = data_config(folder_of_images, image_channels=3)
    first = load_stored(data)
    load_stored.cache_clear()
    monkeypatch.setattr(store, "FileLock", None)
    assert load_stored(data)["train"].info == first["train"].info


@pytest.mark.parametrize("change", [{"image_size": 4}, {"image_channels": 1}])
def test_another_size_or_number_of_channels_is_decoded_anew(folder_of_images, stored, change):
    whole = stored(folder_of_images, image_channels=3)["train"].data.images
    other = stored(folder_of_images, **({"image_channels": 3} | change))["train"].data.images
    assert whole.shape[1:] == (3, 8, 8)
    assert other.shape[1:] == (change.get("image_channels", 3), *[change.get("image_size", 8)] * 2)


def test_a_changed_picture_of_the_same_size_is_decoded_anew(folder_of_images, stored):
    before = stored(folder_of_images, image_channels=3)["train"].data.images.clone()
    for path in folder_of_images.rglob("*.png"):
        Image.eval(Image.open(path), lambda value: 255 - value).save(path, compress_level=0)
        os.utime(path, ns=(1, 1))
    load_stored.cache_clear()
    assert not torch.equal(stored(folder_of_images, image_channels=3)["train"].data.images, before)


@pytest.mark.parametrize("name", ["about.json", "train.images.npy", "train.rows.npy", "test.images.npy"])
@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:50]), lambda path: path.unlink()])
def test_a_damaged_cache_is_decoded_again(folder_of_images, data_config, name, damage, tmp_path):
    data = data_config(folder_of_images, image_channels=3, cache_dir=str(tmp_path / "cache"))
    before = load_stored(data)["train"].data.images.clone()
    load_stored.cache_clear()
    damage(next((tmp_path / "cache" / "images").glob(f"*/{name}")))
    assert torch.equal(load_stored(data)["train"].data.images, before)


def test_a_cache_that_lost_its_labels_is_decoded_again(tmp_path, data_config):
    table_of(noise(20), [0, 1] * 10).to_parquet(tmp_path / "train.parquet")
    data = data_config(tmp_path, cache_dir=str(tmp_path / "cache"))
    assert load_stored(data)["train"].data.labels is not None
    load_stored.cache_clear()
    next((tmp_path / "cache" / "images").glob("*/train.labels.npy")).unlink()
    assert load_stored(data)["train"].data.labels is not None


def test_what_a_killed_process_left_is_removed(folder_of_images, data_config, tmp_path):
    data = data_config(folder_of_images, image_channels=3, cache_dir=str(tmp_path / "cache"))
    load_stored(data)
    load_stored.cache_clear()
    (folder,) = (path for path in (tmp_path / "cache" / "images").iterdir() if path.is_dir())
    shutil.rmtree(folder)
    folder.with_name(f"{folder.name}.1.partial").mkdir()
    load_stored(data)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def test_empty_images_of_a_table_are_bad_images(tmp_path, stored):
    table_of([*noise(19), None]).to_parquet(tmp_path / "train.parquet")
    table_of(noise(5)).to_parquet(tmp_path / "test.parquet")
    with pytest.raises(ConfigError, match="it is empty"):
        stored(tmp_path)
    assert len(stored(tmp_path, max_bad_images=1)["train"].data) == 19


def test_the_digest_is_of_the_content(tmp_path, stored):
    for name, label in (("one", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).mkdir()
        table_of(noise(20), [label] * 20).to_parquet(tmp_path / name / "train.parquet")
    one, same, other = (stored(tmp_path / name)["train"].info.digest for name in ("one", "same", "other"))
    assert one == same != other


def test_the_tensors_are_mapped_and_writing_to_them_changes_no_file(tmp_path, data_config):
    table_of(noise(20)).to_parquet(tmp_path / "train.parquet")
    data = data_config(tmp_path, image_size=4)
    images = load_stored(data)["train"].data.images
    files = {entry.split()[-1] for entry in open("/proc/self/maps") if "images.npy" in entry}  # noqa: SIM115, PTH123
    assert any("train.images.npy" in name for name in files)
    before = images.clone()
    images.zero_()
    load_stored.cache_clear()
    assert torch.equal(load_stored(data)["train"].data.images, before)


def _digests(data, results):
    results.put({split: part.info.digest for split, part in load_stored(data).items()})


def test_processes_that_start_together_decode_once_and_agree(folder_of_images, data_config, tmp_path):
    data = data_config(folder_of_images, image_channels=3, cache_dir=str(tmp_path / "cache"))
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_digests, args=(data, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert found[0] == found[1] == found[2]
    folders = [path for path in (cache_folder(data) / "images").iterdir() if path.is_dir()]
    assert len(folders) == 1


def test_a_cache_in_the_way_of_a_file_is_named(tmp_path, stored):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cache-dir = .*cannot be written"):
        stored(cache_dir=str(tmp_path / "file"))


def test_the_cache_is_in_the_users_cache_folder_by_default(data_config, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(data_config(cache_dir="")) == tmp_path / "fedddpm"
