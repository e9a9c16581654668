"""An exported class-conditional model draws the classes asked for, as a classifier of real images sees them."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.config import default_run_config, load_config
from fedddpm_app.experiment.evaluators import create_evaluator
from tests.conftest import ROOT, run_of

PLAIN_PROCESS = """
import sys, torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file
from fedddpm_app import ClassConditionalPipeline

torch.set_num_threads(1)
pipeline = ClassConditionalPipeline.from_pretrained(sys.argv[1])
pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
labels = torch.arange(200) % 10
found = {
    str(scale): pipeline(labels, scale, 50, torch.Generator().manual_seed(0), output_type="pt").images
    for scale in map(float, sys.argv[3:])
}
save_file(found, sys.argv[2])
"""


def agreement(folder, file, scales, cache_dir):
    """The share of 200 images, by the scale, that the classifier of the real images puts into the class asked for."""
    command = [sys.executable, "-c", PLAIN_PROCESS, str(folder), str(file), *map(str, scales)]
    subprocess.run(command, check=True, capture_output=True)
    config = load_config(default_run_config(ROOT) | {"cache-dir": str(cache_dir)})
    classifier = create_evaluator(config).reference.classifier
    shares = {}
    for scale, images in load_file(file).items():
        predicted = classifier((images * 255).round().to(torch.uint8)).logits.argmax(1)
        shares[float(scale)] = float((predicted == torch.arange(200) % 10).float().mean())
    return shares


@pytest.mark.slow
@pytest.mark.long
def test_the_classes_asked_for_are_drawn(tmp_path, cache_dir):
    """One model of all digits, trained for 1,500 steps: 75 s of a CPU core."""
    places = {"output-dir": str(tmp_path), "run-name": "run", "cache-dir": str(cache_dir)}
    measured = {"eval-images": 0, "eval-final-images": 0, "eval-every": 0, "preview-every": 0}
    trained = {"algorithm": "fedavg", "partition": "iid", "num-rounds": 1, "local-steps": 1500, "num-clients": 2}
    trained |= {"learning-rate-schedule": "cosine", "clients-per-round": 1}
    classes = {"class-conditional": True, "class-dropout": 0.1, "guidance-scale": 2.0}
    run_of(default_run_config(ROOT) | places, measured | trained | classes)
    result = CliRunner().invoke(app, ["export", str(tmp_path / "run"), str(tmp_path / "model"), "--samples", "0"])
    assert result.exit_code == 0, result.output
    shares = agreement(tmp_path / "model", tmp_path / "images.safetensors", [1.0, 2.0], cache_dir)
    assert shares[1.0] >= 0.8, shares
    assert shares[2.0] >= max(0.9, shares[1.0]), shares
