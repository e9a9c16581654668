"""The two apps together, in this process: the run directory, repeatability, conditioning."""

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image
from typer.testing import CliRunner

from fedddpm_app.cli import app as cli
from fedddpm_app.config import ConfigError
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messages.messaging import StreamingGrid, exchange
from fedddpm_app.launch.simulation import Stopped
from fedddpm_app.recording.recorder import RunRecorder


def test_a_run_leaves_what_the_contract_says(shared_run):
    run = shared_run()
    config = json.loads((run.path / "config.json").read_text())
    assert config["run_config"]["num-rounds"] == 2
    assert config["packages"]["flwr"]
    assert run.phases() == ["pretrain", "auxiliary", "initial", "round", "round"]
    assert [sum(counts) for counts in run.stats[0]["data/label_counts"]] == run.stats[0]["data/num_examples"]
    assert len(run.stats[0]["data/num_examples"]) == 4
    for row in run.rounds():
        for key in ("train/loss", "eval/loss", "eval/ema_loss", "client-eval/loss", "correct/loss"):
            assert 0 < row[key] < 5
        assert row["comm/down_mb"] == row["comm/up_mb"] == row["comm/evaluation_mb"]  # the same model three times
        assert row["time/round_s"] > 0
        assert row["mem/peak_rss_mb"] > 0
    assert run.summary["status"] == "completed"
    assert run.summary["images/auxiliary"] == 12
    assert run.summary["comm/up_mb"] == pytest.approx(sum(row.get("comm/up_mb", 0) for row in run.stats))
    for name in ("samples/round-0001.png", "samples/round-0002.png"):
        assert Image.open(run.path / name).size[0] > 100
    assert not (run.path / "scratch").exists()


@pytest.mark.slow
@pytest.mark.plots
def test_a_run_leaves_plots(run_app):
    run = run_app(eval_images=20)
    names = {path.name for path in (run.path / "plots").iterdir()}
    assert names == {"losses.png", "metrics.png", "partition.png"}
    assert all(Image.open(run.path / "plots" / name).size[0] > 100 for name in names)


def test_the_auxiliary_set_on_disk_tells_each_images_client(run_app):
    run = run_app(auxiliary_size=40, num_rounds=1)
    stored = datasets.load_from_disk(str(run.path / "auxiliary" / "dataset"))
    assert stored.num_rows == 40
    clients = np.bincount(stored["client"])
    assert len(clients) == 4
    assert np.asarray(stored[0]["image"]).shape == (8, 8)
    assert sorted(p.name for p in (run.path / "auxiliary").glob("*.png")) == [f"client-{k:04d}.png" for k in range(4)]


def test_the_same_seed_repeats_bit_for_bit_and_another_does_not(shared_run, run_app):
    first, again, other = shared_run(), run_app(), shared_run(seed=1)
    assert first.losses() == again.losses()
    assert first.losses() != other.losses()


@pytest.mark.slow
def test_the_pipeline_draws_images_in_another_process(shared_run):
    run = shared_run()
    code = (
        "import sys; from diffusers import DDPMPipeline; "
        "images = DDPMPipeline.from_pretrained(sys.argv[1])(batch_size=2, num_inference_steps=50).images; "
        "print(len(images), images[0].size)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(run.path / "pipeline")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "2 (8, 8)"


def test_a_conditional_pipeline_draws_the_classes_asked_for(shared_run, tmp_path):
    """Also where diffusers' own class, whose call has no place for labels, loads the folder."""
    run = shared_run(class_conditional=True, num_rounds=1)
    options = ["--num-images", "12", "--sampler", "ddim", "--steps", "2", "--out", str(tmp_path / "sheet.png")]
    drawn = CliRunner().invoke(cli, ["sample", str(run.path), *options])
    assert drawn.exit_code == 0, drawn.output
    assert "20 images" in drawn.stdout  # 2 of each class: the least multiple that holds 12
    pipeline = DDPMPipeline.from_pretrained(run.path / "pipeline")
    noise = torch.zeros(2, 1, 8, 8)
    with torch.no_grad():
        first, second = pipeline.unet(noise, 10, class_labels=torch.tensor([0, 1])).sample
    assert not torch.equal(first, second)


def test_conditional_models_work_end_to_end(run_app):
    run = run_app(class_conditional=True, auxiliary_size=30, preview_images=40, num_rounds=1)
    stored = datasets.load_from_disk(str(run.path / "auxiliary" / "dataset"))
    assert set(stored["label"]) == set(range(10))
    per_client = {c: {row["label"] for row in stored if row["client"] == c} for c in range(4)}
    assert sorted(len(labels) for labels in per_client.values()) == [2, 2, 3, 3]  # its own classes only
    grid = json.loads(Image.open(run.path / "samples" / "round-0001.png").info["grid"])
    assert (grid["images"], grid["columns"]) == (40, 4)  # 10 rows of 4 images


@pytest.mark.parametrize(
    "overrides",
    [
        {"optimizer": "adam", "weight_decay": 0.01, "gradient_clip": 0.0},
        pytest.param({"local_steps": 0, "local_epochs": 1, "batch_size": 256}, marks=pytest.mark.slow),
        pytest.param({"ema_decay": 0.0, "server_ema_decay": 0.0}, marks=pytest.mark.slow),
        {"held_out_fraction": 0.0},
        pytest.param({"eval_every": 0, "preview_every": 0, "checkpoint_every": 1}, marks=pytest.mark.slow),
        pytest.param(
            {"image_size": 16, "image_channels": 3, "unet_channels": "8,8,16", "unet_attention_resolutions": "8,4"},
            marks=pytest.mark.slow,
        ),
    ],
    ids=str,
)
def test_unusual_settings_run(run_app, overrides, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    over_rounds = {"checkpoint_every", "server_ema_decay"} & overrides.keys()
    run = run_app(num_rounds=2 if over_rounds else 1, **overrides)
    assert run.summary["status"] == "completed"
    if overrides.get("checkpoint_every"):
        assert sorted(p.name for p in (run.path / "checkpoints").iterdir()) == ["round-0001", "round-0002"]
        assert "eval/loss" not in run.rounds()[0]
    if "server_ema_decay" in overrides:
        assert all(row["eval/loss"] == row["eval/ema_loss"] for row in run.rounds())
    assert "is left out" not in caplog.text
    if "held_out_fraction" in overrides:
        assert "client-eval/loss" not in run.rounds()[0]


def test_rounds_are_waited_for_as_long_as_configured(run_app, monkeypatch):
    waited = []

    def spy(self, messages, *, timeout=None):
        waited.append(timeout)
        return exchange(self, messages, timeout)

    monkeypatch.setattr(StreamingGrid, "send_and_receive", spy)
    run_app(round_timeout=123.0, num_rounds=1)
    assert set(waited) == {123.0}


def test_a_failed_run_says_so_in_its_summary(run_app, run_config, monkeypatch):
    monkeypatch.setattr("fedddpm_app.client.worker.Worker.train", lambda *a: 1 / 0)
    with pytest.raises(RoundFailedError, match="round 1"):
        run_app()
    summaries = list(Path(str(run_config["output-dir"])).rglob("summary.json"))
    summary = json.loads(summaries[0].read_text())
    assert (summary["status"], summary["images/auxiliary"]) == ("failed", 12)
    assert "round 1" in summary["error"]
    assert (summaries[0].parent / "auxiliary" / "client-0000.png").exists()  # nothing computed is lost


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Stopped(signal.SIGTERM)])
def test_an_interrupted_run_says_so_in_its_summary(run_app, run_config, monkeypatch, stop):
    def interrupted(*_):
        raise stop

    monkeypatch.setattr("fedddpm_app.client.worker.Worker.train", interrupted)
    with pytest.raises(type(stop)):
        run_app()
    summary = json.loads(next(Path(str(run_config["output-dir"])).rglob("summary.json")).read_text())
    assert (summary["status"], summary["images/auxiliary"]) == ("interrupted", 12)
    assert "error" not in summary


def test_a_run_directory_is_never_overwritten(shared_run):
    with pytest.raises(ConfigError, match="holds a run already"):
        RunRecorder(shared_run().path)
