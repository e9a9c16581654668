"""`fedddpm evaluate` on runs and on pipelines of others."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    LDMPipeline,
    PNDMPipeline,
    PNDMScheduler,
    UNet2DModel,
    VQModel,
)
from PIL import Image
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.diffusion.pipelines import default_steps, load_pipeline, pipeline_batches
from tests.conftest import RunDirectory
from tests.evaluation.test_evaluator import FIELDS, NAMES

runner = CliRunner()


@pytest.fixture
def evaluate(cache_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(target, *options):
        steps = () if "--steps" in options else ("--steps", "2")
        arguments = ["evaluate", str(target), "--cache-dir", str(cache_dir), *steps, *options]
        return runner.invoke(app, arguments, env={"COLUMNS": "120"})

    return run


def unet(channels=1, size=8, **options):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    shape = {"sample_size": size, "in_channels": channels, "out_channels": channels, "block_out_channels": (8, 8)}
    return UNet2DModel(**shape, **blocks, norm_num_groups=4, layers_per_block=1, add_attention=False, **options)


def copy_of(run, folder):
    """A run that more may be written to."""
    return RunDirectory(shutil.copytree(run.path, folder / "run"))


def metrics_in(path):
    return {metric["name"]: metric for metric in json.loads(path.read_text())["metrics"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options"),
    [("evaluate", ["--steps", "2", "--num-images", "40"]), ("audit", ["--samples", "40", "--images", "10"])],
)
def test_a_run_chooses_no_cache(shared_run, tmp_path, command, options):
    """It may be somebody else's."""
    run = copy_of(shared_run(num_rounds=1), tmp_path)
    about = json.loads((run.path / "config.json").read_text())
    about["run_config"]["cache-dir"] = str(tmp_path / "chosen")
    (run.path / "config.json").write_text(json.dumps(about))
    done = runner.invoke(app, [command, str(run.path), *options])
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "chosen").exists()


@pytest.mark.slow
def test_images_that_are_not_those_of_the_run_are_named(shared_run, evaluate, tmp_path):
    run = copy_of(shared_run(num_rounds=1, eval_final_images=30), tmp_path)
    assert "images are not those that the run began with" not in evaluate(run.path, "--num-images", "4").output
    about = json.loads((run.path / "config.json").read_text())
    about["data"]["test"] = "other"
    (run.path / "config.json").write_text(json.dumps(about))
    result = evaluate(run.path, "--num-images", "4")
    assert result.exit_code == 0, result.output
    assert "the test images are not those that the run began with" in " ".join(result.output.split())


def test_a_run_is_measured_again(shared_run, evaluate, tmp_path):
    run = copy_of(shared_run(num_rounds=1, eval_final_images=30), tmp_path)
    result = evaluate(run.path, "--num-images", "30")
    assert result.exit_code == 0, result.output
    metrics = metrics_in(run.path / "evaluation.json")
    at_the_end = {metric["name"]: metric for metric in run.summary["metrics"]}
    assert list(metrics) == [*(f"{name}-classifier" for name in NAMES), "class-tv", "memorized-share"]
    for name, metric in metrics.items():
        assert metric.keys() >= FIELDS
        assert metric["value"] == pytest.approx(at_the_end[name]["value"], rel=1e-6)  # the same images
        assert name in result.output
    assert metrics["fd-classifier"]["weights"] == "ema"
    for picture in ("evaluation-classes.png", "evaluation-closest-pairs.png"):
        assert Image.open(run.path / picture).width > 100


@pytest.mark.slow
def test_a_run_without_a_global_model_has_a_mean_and_spread(shared_run, evaluate, tmp_path):
    run = copy_of(shared_run(algorithm="local-only"), tmp_path)
    result = evaluate(run.path, "--num-images", "20", "--sampler", "ddim")
    assert result.exit_code == 0, result.output
    fd = metrics_in(run.path / "evaluation.json")["fd-classifier"]
    assert fd["value"] == pytest.approx(sum(fd["clients"]) / 4)
    assert fd["std"] > 0
    assert fd["weights"] == "raw"


@pytest.mark.slow
def test_a_pipeline_that_cannot_draw_says_why(evaluate, tmp_path):
    """diffusers' PNDM needs more than 2 steps."""
    PNDMPipeline(unet=unet(), scheduler=PNDMScheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "theirs")
    result = evaluate(tmp_path / "theirs", "--dataset", "digits", "--num-images", "12")
    assert result.exit_code == 2
    assert "PNDMPipeline does not generate images in 2 steps" in result.output


@pytest.mark.parametrize("options", [(), ("--sampler", "dpm-solver++"), ("--extractor", "pixels-pca")])
@pytest.mark.parametrize(
    ("kind", "scheduler"),
    [(DDPMPipeline, DDPMScheduler), (DDIMPipeline, DDIMScheduler), (PNDMPipeline, PNDMScheduler)],
)
def test_pipelines_of_others_are_measured(evaluate, tmp_path, kind, scheduler, options):
    kind(unet=unet(), scheduler=scheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "theirs")
    result = evaluate(
        tmp_path / "theirs", "--dataset", "digits", "--num-images", "12", "--batch-size", "5", "--steps", "8", *options
    )
    assert result.exit_code == 0, result.output
    metrics = metrics_in(tmp_path / "evaluation.json")
    extractor = "pixels-pca" if "pixels-pca" in options else "classifier"
    fd = metrics[f"fd-{extractor}"]
    assert (fd["n"], fd["weights"]) == (12, "stored")
    assert fd["sampler"] == ("dpm-solver++" if "dpm-solver++" in options else "pipeline")
    assert metrics["memorized-share"]["reference_n"] == 1437  # all of the training split


def test_a_latent_pipeline_is_measured(evaluate, tmp_path):
    autoencoder = VQModel(1, 1, block_out_channels=(8,), norm_num_groups=4, num_vq_embeddings=8, latent_channels=3)
    pipeline = LDMPipeline(vqvae=autoencoder, unet=unet(3), scheduler=DDIMScheduler(num_train_timesteps=50))
    pipeline.save_pretrained(tmp_path / "latent")
    result = evaluate(tmp_path / "latent", "--dataset", "digits", "--num-images", "12")
    assert result.exit_code == 0, result.output
    refused = evaluate(tmp_path / "latent", "--dataset", "digits", "--num-images", "12", "--sampler", "ddim")
    assert refused.exit_code == 2
    assert "use --sampler pipeline" in refused.output


def test_a_run_is_measured_as_it_was_unless_told_otherwise(run_app, evaluate):
    settings = {"eval_extractor": "pixels-pca", "eval_reference": "train", "eval_final_sampler": "ddpm", "seed": 3}
    run = run_app(num_rounds=1, eval_final_sampler_steps=5, eval_final_images=20, **settings)
    result = evaluate(run.path, "--num-images", "20", "--steps", "5")
    assert result.exit_code == 0, result.output
    metrics = metrics_in(run.path / "evaluation.json")
    for metric in run.summary["metrics"]:
        if not metric["name"].startswith("aux"):
            assert metrics[metric["name"]] == metric  # every field


def test_a_conditional_model_of_fewer_classes_than_the_data_is_refused(evaluate, tmp_path):
    model = unet(num_class_embeds=2)
    DDPMPipeline(unet=model, scheduler=DDPMScheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "theirs")
    result = evaluate(tmp_path / "theirs", "--dataset", "digits", "--num-images", "12")
    assert result.exit_code == 2
    assert "num-classes = 2, but the data have labels 0 to 9" in result.output


def test_a_conditional_pipeline_of_others_gets_labels(evaluate, tmp_path):
    model = unet(num_class_embeds=10)
    DDPMPipeline(unet=model, scheduler=DDPMScheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "theirs")
    result = evaluate(tmp_path / "theirs", "--dataset", "digits", "--num-images", "12", "--sampler", "ddim")
    assert result.exit_code == 0, result.output


def test_the_images_depend_on_the_seed_and_not_on_the_batches(evaluate, tmp_path):
    DDIMPipeline(unet=unet(), scheduler=DDIMScheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "theirs")

    def fd(*options):
        assert evaluate(tmp_path / "theirs", "--dataset", "digits", "--num-images", "12", *options).exit_code == 0
        return metrics_in(tmp_path / "evaluation.json")["fd-classifier"]["value"]

    first = fd("--batch-size", "12")
    assert fd("--batch-size", "5") == pytest.approx(first, rel=1e-4)
    assert fd("--seed", "1") != pytest.approx(first, rel=1e-4)


@pytest.fixture
def theirs(tmp_path):
    DDPMPipeline(unet=unet(), scheduler=DDPMScheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "--dataset is missing"),
        (["--dataset", "path:/nowhere"], "there is no such folder"),
        (["--dataset", "digits", "--sampler", "euler"], "--sampler euler is not known"),
        (["--dataset", "digits", "--sampler", "ddim", "--steps", "51"], "at most 50"),
        (["--dataset", "digits", "--extractor", "vgg"], "eval-extractor = 'vgg'"),
        (["--dataset", "digits", "--extractor", "inception-v3"], "inception-weights"),
        (["--dataset", "digits", "--inception-weights", "/nowhere"], "/nowhere"),
        (["--dataset", "digits", "--reference", "validation"], "eval-reference = 'validation'"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_code_2(evaluate, theirs, options, says, tmp_path):
    result = evaluate(theirs, "--num-images", "12", *options)
    assert result.exit_code == 2
    assert says in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "evaluation.json").exists()


def test_a_folder_without_a_pipeline_or_with_pickled_weights_is_refused(evaluate, theirs, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "there is no pipeline in it" in evaluate(tmp_path / "empty", "--dataset", "digits").output
    weights = theirs / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(unet().state_dict(), theirs / "unet" / "diffusion_pytorch_model.bin")
    weights.unlink()
    result = evaluate(theirs, "--dataset", "digits")
    assert result.exit_code == 2
    assert "safetensors" in result.output


def test_a_pipelines_own_images_are_rounded_as_diffusers_rounds_them(theirs):
    pipeline = load_pipeline(theirs)
    options = {"batch_size": 3, "num_inference_steps": 2}
    pictures = pipeline(generator=[torch.Generator().manual_seed(k) for k in range(3)], **options).images
    expected = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    (drawn,) = pipeline_batches(pipeline, sampler=None, steps=2, seeds=[0, 1, 2], labels=None, batch_size=3)
    assert torch.equal(drawn[:, 0], expected)


def test_a_pipelines_own_number_of_steps_is_its_default(theirs):
    assert default_steps(load_pipeline(theirs)) == 50  # T; the default of DDPM is 1000


@pytest.mark.parametrize("sampler", ["ddim", "pipeline"])
def test_images_that_are_nan_are_refused(evaluate, tmp_path, sampler):
    model = unet()
    torch.nn.init.constant_(model.conv_out.bias, torch.nan)
    DDPMPipeline(unet=model, scheduler=DDPMScheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "theirs")
    result = evaluate(tmp_path / "theirs", "--dataset", "digits", "--num-images", "12", "--sampler", sampler)
    assert result.exit_code == 2
    assert "hold NaN" in result.output


def test_a_size_given_as_a_pair_is_measured(evaluate, tmp_path):
    pipeline = DDPMPipeline(unet=unet(size=(8, 8)), scheduler=DDPMScheduler(num_train_timesteps=50))
    pipeline.save_pretrained(tmp_path / "theirs")
    result = evaluate(tmp_path / "theirs", "--dataset", "digits", "--num-images", "12", "--sampler", "ddim")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("out", ["/proc/nowhere/x.json", "."])
def test_a_file_that_cannot_be_written_is_refused_before_drawing(evaluate, theirs, out):
    result = evaluate(theirs, "--dataset", "digits", "--num-images", "12", "--out", out)
    assert result.exit_code == 2
    assert "cannot be written" in result.output


def test_images_that_are_not_square_are_refused(evaluate, tmp_path):
    model = unet(size=(8, 12))
    DDPMPipeline(unet=model, scheduler=DDPMScheduler(num_train_timesteps=50)).save_pretrained(tmp_path / "wide")
    result = evaluate(tmp_path / "wide", "--dataset", "digits")
    assert result.exit_code == 2
    assert "8x12x1: only square" in result.output
