import contextlib
import json
import math
import subprocess
import sys
import time

import pytest
import torch
from filelock import FileLock, Timeout

from benchmarks import reliability
from benchmarks.deployment import run_deployed
from benchmarks.echo import VARIABLE, Echo, our_client_app, server_app
from benchmarks.federation_overhead import Case
from benchmarks.models import LARGE, MIDDLE, MODELS, TINY, TimedData, config_of, random_images
from benchmarks.plain_loop import PlainLoop
from fedddpm_app.config import default_run_config, load_config
from fedddpm_app.diffusion.objective import create_noise_scheduler
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.transport import shared
from tests.conftest import ROOT

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_step_is_measured_without_flower():
    code = "import sys, benchmarks.train_step; print(any(m.split('.')[0] in ('flwr', 'ray') for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("name", "millions"), [(TINY, 0.16), (MIDDLE, 1.11), (LARGE, 35.75)])
def test_the_models_have_the_size_that_their_names_say(name, millions):
    config = config_of(name)
    with torch.device("meta"):
        model = create_unet(config.unet, config.data, 0)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)
    assert config.data.image_size == int(name.rsplit("x", 1)[1])


def test_the_plain_loop_learns_and_times_whole_batches():
    config = config_of(TINY)
    images = random_images(config, 16, CPU).images
    model = create_unet(config.unet, config.data, 0)
    before = model.conv_out.weight.detach().clone()
    loop = PlainLoop(model, create_noise_scheduler(config.diffusion), images, 8, CPU)
    assert loop.seconds(5) > 0
    assert len(loop.losses) == 5
    assert all(map(math.isfinite, loop.losses))
    assert not torch.equal(before, model.conv_out.weight)


def test_timed_data_time_the_steps_between_warm_up_and_the_last():
    data, starts = TimedData(random_images(config_of(TINY), 4, CPU), steps=3, warm_up=2), []
    data.on_start = lambda: starts.append(1)
    assert data.total_steps == 6
    for _ in range(5):
        data.batch(torch.tensor([0]))
    assert data.seconds == 0.0
    data.batch(torch.tensor([1]))
    assert data.seconds > 0
    assert len(starts) == 1


@pytest.mark.parametrize("model", MODELS)
def test_the_simulation_of_a_case_is_a_valid_config(model):
    load_config(default_run_config(ROOT) | Case(model, clients=2, steps=3, batch_size=8, rounds=2, repeats=1).overrides)


def test_echo_clients_give_back_what_they_get(tmp_path, monkeypatch):
    """The federation of the transport benchmarks, in process, with the small model."""
    echo = Echo("flat", 3, 2, str(tmp_path / "metrics.json"), str(tmp_path), "fp32", model=TINY)
    monkeypatch.setenv(VARIABLE, echo.to_environment()[VARIABLE])
    grid = InProcessGrid(our_client_app, 3, {})
    server_app(grid=grid, context=grid.contexts[1000])
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len(metrics["round_s"]) == 2
    assert metrics["moved_mb"] == pytest.approx(2 * 2 * 3 * metrics["model_mb"], rel=0.1)
    assert metrics["peak_mb"] >= 0.99 * metrics["idle_mb"] > 0  # the kernel counts the two in different ways


@pytest.mark.parametrize("kind", ["stock", "auto", "shared-memory", "flat", "arrays"])
def test_an_echo_is_a_valid_config(kind):
    assert Echo(kind, 1000, 3, "", "", clients_per_round=100).config.data.num_clients == 1000


def abandoned(since):
    """Directories of weights that were used since then, and whose run is gone: nobody holds their lock."""
    found = []
    for path in shared.ROOT.glob("fedddpm-*"):
        with contextlib.suppress(FileNotFoundError, Timeout):  # of another run: removed meanwhile, or alive
            if path.stat().st_mtime > since:
                with FileLock(path / "owner.lock", timeout=0):
                    found.append(path)
    time.sleep(1.0)  # for another run that is just removing its own
    return [path for path in found if path.exists()]


@pytest.mark.slow
@pytest.mark.long
def test_the_transport_benchmark_runs_in_its_short_form(tmp_path):
    command = [sys.executable, "-m", "benchmarks.transport", "--short", "--json", str(tmp_path / "t.json")]
    began = time.time()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=280)
    report = json.loads((tmp_path / "t.json").read_text())
    assert {row["transport"] for row in report["rows"]} == {"stock", "shared-memory"}
    assert report["ratios"]["memory above idle, shared-memory / stock, 4 clients"] < 1
    assert not abandoned(began)


def test_the_reliability_benchmark_runs_in_its_short_form():
    report = reliability.measure(short=True)
    parts = {row["part"]: row["s"] for row in report.rows}
    assert {"flat: received", "shared-memory: received and checked", "checkpoint: on the disk"} <= parts.keys()
    assert min(parts.values()) > 0


@pytest.mark.slow
@pytest.mark.long
def test_flat_weights_go_through_a_superlink_and_supernodes():
    metrics = run_deployed("flat", "int8-delta", rounds=1)
    assert metrics["moved_mb"] < 2 * 1.4 * metrics["model_mb"]
