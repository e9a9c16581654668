"""`fedddpm sample` on pipelines from elsewhere: their scheduler settles T, the steps and the betas."""

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    EulerDiscreteScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from PIL import Image
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.config import ConfigError
from fedddpm_app.diffusion.choice import choose_sampler
from fedddpm_app.diffusion.pipelines import load_pipeline, pipeline_batches

SCHEDULERS = {
    "ddpm": (DDPMPipeline, DDPMScheduler(num_train_timesteps=50)),
    "ddim": (DDIMPipeline, DDIMScheduler(num_train_timesteps=30, prediction_type="v_prediction")),
    "euler": (DDPMPipeline, EulerDiscreteScheduler(num_train_timesteps=20)),
    "unipc": (DDPMPipeline, UniPCMultistepScheduler(num_train_timesteps=12)),
}


@pytest.fixture
def pipeline_of(tmp_path):
    def save(name):
        torch.manual_seed(0)
        blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (8,)}
        shape = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 4, "layers_per_block": 1}
        kind, scheduler = SCHEDULERS[name]
        unet = UNet2DModel(**shape, **blocks, add_attention=False)
        kind(unet=unet, scheduler=scheduler).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("sampler", [None, "pipeline", "ddim"])
def test_any_scheduler_is_sampled_without_further_options(pipeline_of, name, sampler, tmp_path):
    options = ["--num-images", "2", "--device", "cpu", "--out", str(tmp_path / "sheet.png")]
    options += ["--sampler", sampler] if sampler else []
    result = CliRunner().invoke(app, ["sample", str(pipeline_of(name)), *options])
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "sheet.png").width >= 8


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--steps", "51"], "--steps = 51 is more than"),
        (["--steps", "51", "--sampler", "pipeline"], "--steps = 51 is more than the 50 diffusion steps"),
        (["--steps", "7", "--sampler", "ddim"], "--steps = 7 does not divide"),
        (["--sampler", "ddmi"], "--sampler ddmi is not known"),
    ],
)
def test_wrong_options_are_one_sentence(pipeline_of, options, says):
    result = CliRunner().invoke(app, ["sample", str(pipeline_of("ddpm")), "--num-images", "1", *options])
    assert result.exit_code == 2
    assert says in result.stderr


def test_the_default_number_of_steps_fits_the_sampler_and_the_scheduler(pipeline_of):
    pipeline = load_pipeline(pipeline_of("ddim"))
    assert choose_sampler(pipeline, "ddim", None, 25) == ("ddim", 15)
    assert choose_sampler(pipeline, "dpm-solver++", None, 25) == ("dpm-solver++", 25)
    assert choose_sampler(pipeline, "pipeline", None, 25) == (None, 30)
    solver = load_pipeline(pipeline_of("unipc"))
    assert choose_sampler(solver, "pipeline", None, 25) == (None, 11)  # with 12, two of its timesteps are equal
    with pytest.raises(ConfigError, match=r"--steps = 12 makes timesteps .* equal: use at most 11"):
        next(pipeline_batches(solver, sampler=None, steps=12, seeds=[3], labels=None, batch_size=1))


def test_a_scheduler_that_scales_starts_from_scaled_noise(pipeline_of):
    """The app's call equals the loop of diffusers' documentation, with scaled noise and scaled inputs."""
    pipeline = load_pipeline(pipeline_of("euler"))
    (images,) = pipeline_batches(pipeline, sampler=None, steps=5, seeds=[3], labels=None, batch_size=1)
    scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(5)
    x_t = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3)) * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            output = pipeline.unet(scheduler.scale_model_input(x_t, t), t).sample
            x_t = scheduler.step(output, t, x_t).prev_sample
    assert torch.equal(images, ((x_t.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8))


def test_no_picture_is_written_through_a_link_of_the_run(pipeline_of):
    run = pipeline_of("ddpm")
    kept = run.with_name("kept")
    kept.write_text("of the user")
    (run / "samples").mkdir()
    (run / "samples" / "sample-ddpm-5-seed0.png").symlink_to(kept)
    options = ["--num-images", "2", "--device", "cpu", "--sampler", "ddpm", "--steps", "5"]
    result = CliRunner().invoke(app, ["sample", str(run), *options])
    assert result.exit_code == 0, result.output
    assert kept.read_text() == "of the user"
    assert Image.open(run / "samples" / "sample-ddpm-5-seed0.png").format == "PNG"
