"""Bombs: a few bytes that state or imply gigabytes are refused in bounded memory, by file, size, limit and fix."""

import io
import json
import struct
import zipfile

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from flwr.app import Array, ArrayRecord
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fedddpm_app.compare.archive import CELLS, Archive
from fedddpm_app.config import ConfigError
from fedddpm_app.diffusion.pipelines import load_pipeline
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.disk.durable import digest_of
from fedddpm_app.evaluation.extractors import inception_v3
from fedddpm_app.peers.ledger import read_ledger
from fedddpm_app.recording.checkpoints import CheckpointError, CheckpointWriter, load_checkpoint
from fedddpm_app.recording.files import RecordingError, keep_lines, read_lines, write_json
from fedddpm_app.recording.sheets import _GRID, read_tiles
from fedddpm_app.transport import Expected, PayloadError
from fedddpm_app.transport.carriers import FLAT, can_read, receive
from tests.faults.mutations import MB, at_most, bounded, sparse

# ---- files of a run directory ------------------------------------------------------------------


def test_a_json_file_of_gigabytes_is_not_read(tmp_path):
    path = sparse(tmp_path / "config.json", 4 * 2**30)
    with at_most(MB), pytest.raises(ValueError, match=r"4,294,967,296 bytes, more than .* reads"):
        read_object(path)


def test_a_json_file_without_an_end_is_not_read(tmp_path):
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with bounded(), pytest.raises(ValueError, match="is not a file"):
        read_object(tmp_path / "config.json")


@pytest.mark.parametrize("read", [read_lines, read_ledger])
def test_lines_of_gigabytes_are_not_read(tmp_path, read):
    path = sparse(tmp_path / "stats.jsonl", 64 * 2**30, b"{}\n")
    with at_most(MB), pytest.raises(ValueError, match="more than"):
        read(path)


@pytest.fixture
def checkpoint(tmp_path):
    writer = CheckpointWriter(tmp_path)
    writer.save(1, {"model": {"a": torch.ones(2, 3)}}, {"x": 1}, {"num_stats": 3}, 1, lambda _: True)
    writer.check()
    return tmp_path / "checkpoints" / "round-0001"


@pytest.mark.parametrize("name", ["state.json", "manifest.json"])
def test_a_checkpoint_with_json_of_gigabytes(checkpoint, name):
    sparse(checkpoint / name, 4 * 2**30)
    if name == "state.json":
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        (checkpoint / "manifest.json").write_text(json.dumps({"model.safetensors": manifest["model.safetensors"]}))
    with at_most(MB), pytest.raises(CheckpointError, match=f"{name}.* more than"):
        load_checkpoint(checkpoint.parent.parent, 1)


@pytest.mark.parametrize("shape", [[10**9], [0] * 10**6, [2**62, 4]])
def test_a_checkpoint_whose_weights_have_another_header(checkpoint, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["model.safetensors"] = digest_of(checkpoint / "model.safetensors")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with at_most(MB), pytest.raises(CheckpointError):
        load_checkpoint(checkpoint.parent.parent, 1)


def test_a_checkpoint_with_millions_of_tensors(checkpoint):
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{k}": entry for k in range(50_000)}).encode()
    (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["model.safetensors"] = digest_of(checkpoint / "model.safetensors")
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    with at_most(MB), pytest.raises(CheckpointError, match="header"):
        load_checkpoint(checkpoint.parent.parent, 1)


@pytest.mark.parametrize("change", [{"images": 10**7, "columns": 10**9}, {"tile_width": 60_000, "tile_height": 60_000}])
def test_a_sheet_states_no_more_tiles_than_it_has_pixels_for(tmp_path, change):
    grid = {"tile_width": 10, "tile_height": 10, "columns": 2, "row_tops": [0], "images": 2}
    text = PngInfo()
    text.add_text(_GRID, json.dumps(grid | change))
    Image.new("RGB", (20, 10)).save(tmp_path / "sheet.png", pnginfo=text)
    with at_most(MB), pytest.raises(ValueError, match="not a sheet"):
        read_tiles(tmp_path / "sheet.png")


def test_cells_that_unpack_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("fedddpm_app.limits.CELLS_BYTES", 10 * MB)
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "grid" / CELLS, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "abc":
            archive.writestr(name, bytes(4 * MB))
    with at_most(2 * MB), pytest.raises(ConfigError, match=r"it states 12,582,912 bytes.*more than.*cells\.zip"):
        Archive(tmp_path, "grid")


def test_cells_of_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr("fedddpm_app.limits.CELLS_FILES", 20)
    (tmp_path / "grid").mkdir()
    (tmp_path / "grid.json").write_text("{}")
    with zipfile.ZipFile(tmp_path / "grid" / CELLS, "w") as archive:
        for name in range(21):
            archive.writestr(str(name), b"")
    with pytest.raises(ConfigError, match="21 files"):
        Archive(tmp_path, "grid")


# ---- models ----------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4, "layers_per_block": 1}
    unet = UNet2DModel(**shape, **blocks, add_attention=False)
    DDPMPipeline(unet, DDPMScheduler(50)).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


CONFIGS = {
    "wide": ("unet/config.json", {"block_out_channels": [40_000]}),
    "deep": ("unet/config.json", {"layers_per_block": 10**5}),
    "many classes": ("unet/config.json", {"num_class_embeds": 10**9}),
    "many steps": ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**10}),
    "many steps, as a float": ("scheduler/scheduler_config.json", {"num_train_timesteps": 1e10}),
    "large images": ("unet/config.json", {"sample_size": 10**6}),
    "large images, as floats": ("unet/config.json", {"sample_size": [1e5, 1e5]}),
    "large images, as texts": ("unet/config.json", {"sample_size": ["100000", "100000"]}),
    "images of no size": ("unet/config.json", {"sample_size": float("nan")}),
    "a long list": ("unet/config.json", {"sample_size": [8] * 65}),
    "many blocks": (
        "unet/config.json",
        {"block_out_channels": [8] * 10**5, "down_block_types": ["DownBlock2D"] * 10**5},
    ),
}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_pipeline_whose_config_states_gigabytes(pipeline, config):
    name, change = CONFIGS[config]
    path = pipeline / name
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with at_most(20 * MB), pytest.raises(ConfigError, match=r"config.*(more than|holds|states)"):
        load_pipeline(pipeline)


def test_a_model_of_another_class_is_not_built(pipeline):
    """One that no pipeline of pictures needs: with 400 ratios, on no device, it takes a minute."""
    index = json.loads((pipeline / "model_index.json").read_text())
    (pipeline / "model_index.json").write_text(json.dumps(index | {"vae": ["diffusers", "AutoencoderOobleck"]}))
    (pipeline / "vae").mkdir()
    config = {"downsampling_ratios": [2] * 60, "channel_multiples": [1] * 60, "encoder_hidden_size": 1}
    (pipeline / "vae" / "config.json").write_text(json.dumps(config))
    with bounded(), pytest.raises(ConfigError, match=r"only schedulers, and models of UNet2DModel and VQModel"):
        load_pipeline(pipeline)


def test_a_scheduler_may_state_a_beta_for_each_step(pipeline):
    path = pipeline / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trained_betas": [0.01] * 1000}))
    assert len(load_pipeline(pipeline).scheduler.betas) == 1000


def test_a_pipeline_with_a_config_of_gigabytes(pipeline):
    sparse(pipeline / "unet" / "config.json", 4 * 2**30)
    with at_most(MB), pytest.raises(ConfigError, match="more than"):
        load_pipeline(pipeline)


def test_evaluation_weights_that_unpack_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("fedddpm_app.limits.NETWORK_BYTES", 10 * MB)
    path = tmp_path / "weights.pth"
    whole = io.BytesIO()
    torch.save({"a": torch.zeros(3 * MB)}, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in source.namelist():
            packed.writestr(member, source.read(member))
    del whole
    content = path.read_bytes()
    assert len(content) < MB
    with bounded(), pytest.raises(ConfigError, match="more than"):
        inception_v3._parse(content, str(path))


# ---- weights on the wire -----------------------------------------------------------------------

WEIGHTS = {"a": torch.ones(3, 2)}


@pytest.mark.parametrize("text", ["[" + "[]," * 1_000_000 + "[]]", json.dumps({str(k): 1 for k in range(300_000)})])
def test_a_blob_with_a_header_of_megabytes(text):
    header = text.encode()
    blob = struct.pack("<Q", len(header)) + header
    record = ArrayRecord({"weights": Array("uint8", (len(blob),), FLAT, blob)})
    with at_most(8 * MB):
        with pytest.raises(PayloadError):
            receive(record, Expected(WEIGHTS), 0, None)
        assert not can_read(record)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_published_cells_that_unpack_to_more_than_they_state(tmp_path, method):
    """The library unpacks a member as a whole, and cuts it to the stated size afterwards."""
    path = tmp_path / "grid" / "cells.zip"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("row/stats.jsonl", bytes(100 * MB))
    content = bytearray(path.read_bytes())
    for place in (22, content.rfind(b"PK\x01\x02") + 24):  # of the member, and of the directory
        content[place : place + 4] = (1000).to_bytes(4, "little")
    path.write_bytes(content)
    write_json(tmp_path / "grid.json", {})
    with at_most(8 * MB), pytest.raises(ConfigError, match="cells of grid cannot be read"):
        Archive(tmp_path, "grid")


def test_a_line_that_is_nested_too_deeply(tmp_path):
    (tmp_path / "stats.jsonl").write_text("[" * 200_000 + "]" * 200_000 + "\n")
    with bounded(), pytest.raises(ValueError, match="nested too deeply"):
        read_lines(tmp_path / "stats.jsonl")
    with bounded(), pytest.raises(RecordingError, match="fewer than 1 complete lines"):
        keep_lines(tmp_path / "stats.jsonl", 1)
