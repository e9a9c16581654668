"""What comes from elsewhere is data: loading it runs no code, which would leave a mark on the disk."""

import contextlib
import io
import json
import os
import pickle
import sys

import datasets
import numpy as np
import pyarrow
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fedddpm_app.apps.resuming import open_run
from fedddpm_app.cli import app
from fedddpm_app.cli.claim import continue_directory
from fedddpm_app.cli.common import find_app
from fedddpm_app.config import ConfigError, default_run_config, load_config, packaged_app
from fedddpm_app.data.dataset import FederatedDataset
from fedddpm_app.data.pixels import open_picture
from fedddpm_app.data.sources import load_local
from fedddpm_app.data.store import load_stored
from fedddpm_app.evaluation.extractors import inception_v3
from fedddpm_app.recording.auxiliary_set import load_auxiliary_set
from fedddpm_app.recording.files import write_json
from tests.conftest import ROOT
from tests.data.conftest import data_config, folder_of_images  # noqa: F401


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "mark"


@pytest.fixture
def hostile(mark):
    """A pickle that leaves the mark."""

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {mark}",)

    return Hostile()


def evil(mark):
    return f'import pathlib\npathlib.Path(r"{mark}").touch()\nclass Evil: pass\napp = Evil\n'


@pytest.fixture
def run_dir(tmp_path, mark, monkeypatch):
    """A delivered run directory with a module, which is the current folder as `python -m` has it in its path."""
    folder = tmp_path / "delivered"
    (folder / "pipeline").mkdir(parents=True)
    (folder / "pipeline" / "model_index.json").write_text("{}")
    (folder / "evil_of_a_run.py").write_text(evil(mark))
    config = {**default_run_config(), "algorithm": "evil_of_a_run:Evil", "cache-dir": str(tmp_path / "cache")}
    (folder / "config.json").write_text(json.dumps({"run_config": config, "run_id": "1"}))
    (folder / "stats.jsonl").write_text("{}\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "evil_of_a_run", raising=False)
    return folder


@pytest.mark.parametrize("command", ["audit", "sample", "evaluate"])
def test_the_algorithm_of_a_delivered_run_is_not_imported(run_dir, mark, command):
    result = CliRunner().invoke(app, [command, str(run_dir)])
    assert result.exit_code == 2, result.output
    assert not mark.exists()
    assert command != "audit" or "--algorithm evil_of_a_run:Evil" in result.output


@pytest.mark.parametrize("options", [(), ("--app", str(ROOT))])
def test_a_delivered_run_that_is_resumed_chooses_no_code(run_dir, mark, options):
    result = CliRunner().invoke(app, ["run", "--engine", "inprocess", "--resume", str(run_dir), *options])
    assert result.exit_code == 2, result.output
    assert not mark.exists()
    assert "algorithm=" in result.output


def test_a_delivered_run_is_no_app(run_dir):
    """Also one with a pyproject.toml, in which the user resumes it."""
    (run_dir / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    assert find_app(None, ".") == find_app(None, str(run_dir)) == packaged_app().resolve()
    assert find_app(None) == find_app(None, "elsewhere") == run_dir.resolve()


def test_what_the_user_names_is_imported(run_dir, mark):
    result = CliRunner().invoke(app, ["audit", str(run_dir), "--algorithm", "other:Class"])
    assert "--algorithm evil_of_a_run:Evil" in result.output
    result = CliRunner().invoke(app, ["audit", str(run_dir), "--algorithm", "evil_of_a_run:Evil"])
    assert "--algorithm" not in result.output


@pytest.mark.parametrize("name", ["rows", "labels", "images"])
def test_a_cache_with_a_pickle_is_built_again(data_config, folder_of_images, tmp_path, hostile, mark, name):  # noqa: F811
    config = data_config(folder_of_images, image_size=8, image_channels=3, cache_dir=str(tmp_path / "cache"))
    load_stored(config)
    (path,) = (tmp_path / "cache").rglob(f"train.{name}.npy")
    for content in (pickle.dumps(hostile), None):
        load_stored.cache_clear()
        if content is None:
            np.save(path, np.array([hostile], dtype=object), allow_pickle=True)
        else:
            path.write_bytes(content)
        assert len(load_stored(config)["train"].rows) == 48
    assert not mark.exists()


def test_evaluation_weights_that_are_a_pickle_are_refused(tmp_path, hostile, mark):
    for content in (pickle.dumps(hostile), pickle.dumps({"a": hostile}, 2)):
        with pytest.raises(ConfigError, match="objects other than tensors"):
            inception_v3._parse(content, "weights.pth")
    torch.save(hostile, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match="objects other than tensors"):
        inception_v3._parse((tmp_path / "weights.pth").read_bytes(), "weights.pth")
    assert not mark.exists()


def test_an_arrow_file_with_a_type_that_is_a_pickle(tmp_path, hostile, mark):
    about = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": pickle.dumps(hostile)}
    schema = pyarrow.schema([pyarrow.field("image", pyarrow.binary(), metadata=about)])
    folder = tmp_path / "data"
    folder.mkdir()
    with (
        pyarrow.OSFile(str(folder / "train.arrow"), "wb") as file,
        pyarrow.ipc.new_stream(file, schema) as writer,
    ):
        writer.write_table(pyarrow.table([pyarrow.array([b"1"])], schema=schema))
    with contextlib.suppress(ConfigError):
        load_local(f"path:{folder}")
    assert not mark.exists()


def test_a_folder_of_data_with_a_loading_script(tmp_path, mark, monkeypatch):
    folder = tmp_path / "flowers"
    for name in ("flowers", "parquet/parquet", "imagefolder/imagefolder", "setup", "dataset_infos"):
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(evil(mark))
    (folder / "README.md").write_text(
        "---\nconfigs: !!python/object/apply:os.system ['touch " + str(mark) + "']\n---\n"
    )
    Image.new("L", (8, 8), 3).save(folder / "a.png")
    monkeypatch.chdir(folder)
    assert len(load_local(f"path:{folder}")["train"]) == 1
    assert not mark.exists()


def test_a_picture_that_is_a_program_is_not_run(tmp_path, mark, monkeypatch):
    """The reader of EPS files starts Ghostscript, whatever the ending of the file is."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    (tmp_path / "a.png").write_text(text)
    with pytest.raises(OSError, match="cannot identify"):
        open_picture(tmp_path / "a.png").load()
    assert not mark.exists()
    with Image.open(tmp_path / "a.png") as opened, contextlib.suppress(OSError):  # Pillow alone does run it
        opened.load()
    assert mark.exists()


@pytest.mark.parametrize("name", ["log.txt", "stats.jsonl", "checkpoints", "auxiliary/dataset"])
def test_a_delivered_run_with_a_link_is_not_resumed(run_dir, name):
    """A run writes to its files: a line of a log in ~/.bashrc is code, and lines of stats.jsonl are removed."""
    about = json.loads((run_dir / "config.json").read_text())
    about["run_config"]["algorithm"] = "fedavg"
    (run_dir / "config.json").write_text(json.dumps(about))
    (run_dir / "stats.jsonl").unlink()
    (run_dir / "summary.json").write_text(json.dumps({"status": "failed"}))
    kept = run_dir.with_name("kept")
    if name in ("checkpoints", "auxiliary/dataset"):
        (kept / "partial-1").mkdir(parents=True)
    else:
        kept.write_text("of the user")
    (run_dir / name).parent.mkdir(exist_ok=True)
    (run_dir / name).symlink_to(kept)
    config = load_config(default_run_config() | about["run_config"] | {"resume": str(run_dir)})
    run_config = default_run_config() | about["run_config"]
    with pytest.raises(ConfigError, match="link"):
        resumed(config, run_config)
    assert (kept / "partial-1").is_dir() if kept.is_dir() else kept.read_text() == "of the user"


def resumed(config, run_config):
    """Do what `fedddpm run --resume` writes before the first round."""
    directory, log = continue_directory(config, run_config)
    with log:
        log.write("a line")
    with open_run(config, run_config, directory, FakeRun())[0]:
        pass


class FakeRun:
    """Flower's description of a run."""

    run_id, fab_hash = 2, "0"


@pytest.mark.parametrize("column", ["a program", "a file of the host", "an address"])
def test_a_delivered_auxiliary_set_holds_its_pictures(tmp_path, mark, monkeypatch, caplog, column):
    """It names no other file and no address, and no picture is a program."""
    asked = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: mark.touch() or Image.new("RGB", (8, 8)))
    Image.new("L", (8, 8)).save(tmp_path / "private.png")
    eps = io.BytesIO()
    Image.new("RGB", (8, 8)).save(eps, "EPS")
    where = {"a file of the host": str(tmp_path / "private.png"), "an address": "https://example.org/1.png"}
    cell = {"bytes": eps.getvalue() if column == "a program" else None, "path": where.get(column)}
    image = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    features = datasets.Features({"image": image, "client": datasets.Value("int32")})
    folder = tmp_path / "auxiliary" / "dataset"
    datasets.Dataset.from_dict({"image": [cell], "client": [0]}, features=features).save_to_disk(str(folder))
    about = json.loads((folder / "dataset_info.json").read_text())
    about["features"]["image"] = {"_type": "Image"}
    write_json(folder / "dataset_info.json", about)
    monkeypatch.setattr("datasets.features.image.xopen", lambda path, *_, **__: asked.append(path) or io.BytesIO())
    write_json(tmp_path / "auxiliary" / "dataset.json", {"sha256": "", "clients_sha256": ""})
    assert load_auxiliary_set(tmp_path / "auxiliary") is None
    assert "SHA-256" not in caplog.text, "its pictures were read"
    assert not mark.exists()
    assert not asked


def test_a_table_that_is_divided_by_its_column_opens_no_address(tmp_path, monkeypatch, data_config):  # noqa: F811
    asked, folder, picture = [], tmp_path / "set", io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "PNG")
    cell = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    columns = {
        "image": [{"bytes": picture.getvalue(), "path": None}] * 4,
        "site": [{"bytes": None, "path": f"https://example.org/{k % 2}.png"} for k in range(4)],
    }
    table = datasets.Dataset.from_dict(columns, features=datasets.Features({"image": cell, "site": cell}))
    table.save_to_disk(str(folder))
    about = json.loads((folder / "dataset_info.json").read_text())
    about["features"] = {"image": {"_type": "Image"}, "site": {"_type": "Image"}}
    write_json(folder / "dataset_info.json", about)
    monkeypatch.setattr("datasets.features.image.xopen", lambda path, *_, **__: asked.append(path) or io.BytesIO())
    config = data_config(folder, partition="natural", partition_column="site")
    with contextlib.suppress(OSError, ConfigError):
        _ = FederatedDataset(config, 0).clients
    assert not asked
