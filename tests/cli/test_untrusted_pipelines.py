"""A pipeline folder from elsewhere is data: whatever code lies in it, `sample` and `evaluate` do not run it."""

import json
import shutil

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.config import ConfigError
from fedddpm_app.diffusion.pipelines import load_pipeline
from tests.faults.mutations import bounded

EVIL = """
import pathlib
from diffusers import DDPMPipeline, UNet2DModel
pathlib.Path(r"{marker}").write_text("ran")
class Evil(DDPMPipeline): pass
class EvilModel(UNet2DModel): pass
"""
CRAFTED = {
    "a pipeline class of the folder": {"_class_name": ["pipeline", "Evil"]},
    "a pipeline class of another file": {"_class_name": ["evil", "Evil"]},
    "a class by its path": {"_class_name": "evil.Evil"},
    "a file as a class": {"_class_name": "evil.py"},
    "a model of the folder": {"unet": ["evil", "EvilModel"]},
    "a model of the model's folder": {"unet": ["unet", "EvilModel"]},
    "a class of another library": {"unet": ["transformers", "AutoModel"]},
    "a module that is imported already": {"unet": ["os", "system"]},
    "a folder elsewhere": {"../downloaded/unet": ["diffusers", "UNet2DModel"]},
    "a module of the search path": {"unet": ["evil_on_the_path", "EvilModel"]},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A pipeline folder full of code that would leave a mark, and the mark."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
    shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4, "layers_per_block": 1}
    unet = UNet2DModel(**shape, **blocks, add_attention=False)
    path, marker = tmp_path / "downloaded", tmp_path / "marker"
    DDPMPipeline(unet, DDPMScheduler(50)).save_pretrained(path)
    for place in (path, path / "unet", tmp_path / "on-the-path"):
        place.mkdir(exist_ok=True)
        for name in ("pipeline", "evil", "unet", "evil_on_the_path"):
            (place / f"{name}.py").write_text(EVIL.format(marker=marker))
    monkeypatch.syspath_prepend(str(tmp_path / "on-the-path"))
    monkeypatch.chdir(path)
    return path, marker


@pytest.mark.parametrize("crafted", CRAFTED)
@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_code_that_a_pipeline_folder_names_is_not_run(folder, command, crafted):
    path, marker = folder
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps(index | CRAFTED[crafted]))
    options = ["--dataset", "digits"] if command == "evaluate" else ["--num-images", "1", "--steps", "1"]
    result = CliRunner().invoke(app, [command, str(path), *options])
    assert not marker.exists()
    assert result.exit_code == 2, result.output
    assert "cannot be loaded as a diffusers pipeline" in result.stderr


def test_the_folder_without_a_crafted_index_is_sampled(folder):
    path, marker = folder
    result = CliRunner().invoke(app, ["sample", str(path), "--num-images", "1", "--steps", "1"])
    assert result.exit_code == 0, result.output
    assert not marker.exists()


@pytest.mark.parametrize("crafted", ["a pickle of weights", "a large model"])
def test_a_pipeline_within_a_pipeline_is_refused(folder, crafted):
    """Its own index, its configs and its weights would be read without a check."""
    path, marker = folder
    inner = path.with_name("inner")
    path.rename(inner)
    shutil.copytree(inner, path / "unet")
    for name in ("model_index.json", "scheduler"):
        (inner / name).rename(path / name)
    unet = path / "unet" / "unet"
    weights = unet / "diffusion_pytorch_model.safetensors"
    if crafted == "a pickle of weights":
        torch.save(load_file(weights), unet / "diffusion_pytorch_model.bin")
        weights.unlink()
    else:
        about = json.loads((unet / "config.json").read_text())
        (unet / "config.json").write_text(json.dumps(about | {"block_out_channels": [1024]}))
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps(index | {"unet": ["diffusers", "DDPMPipeline"]}))
    with bounded(), pytest.raises(ConfigError, match="only schedulers, and models of UNet2DModel and VQModel"):
        load_pipeline(path)
    assert not marker.exists()
