"""Metrics of a run: after rounds, at the end, of clients' models, of the auxiliary set."""

import itertools
import json
import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image

from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.diffusion import ensemble
from fedddpm_app.diffusion.images import DivergedError
from fedddpm_app.diffusion.labels import labels_like
from fedddpm_app.diffusion.sampling import image_seeds, sample_batches, sample_images
from fedddpm_app.evaluation.distances import frechet_distance
from fedddpm_app.evaluation.evaluator import Evaluator
from fedddpm_app.experiment.evaluators import create_evaluator
from fedddpm_app.recording.pictures import RunPictures
from tests.evaluation.test_evaluator import FIELDS, NAMES

EVAL = {"eval_images": 20, "eval_final_images": 30}
MEASURED = EVAL | {"unet_dropout": 0.1}


def by_name(metrics):
    return {metric["name"]: metric for metric in metrics}


@pytest.mark.slow
def test_a_run_has_cheap_metrics_after_every_round_and_the_full_ones_at_the_end(shared_run):
    run = shared_run(**MEASURED)
    for row in run.rounds():
        metrics = by_name(row["eval/metrics"])
        assert list(metrics) == [*(f"{name}-classifier" for name in NAMES), "class-tv"]
        for name, metric in metrics.items():
            assert metric.keys() >= FIELDS
            assert (metric["n"], metric["sampler"], metric["steps"]) == (20, "dpm-solver++", 2)
            assert row[f"eval/{name}"] == metric["value"]
            assert row[f"eval/{name}_n"] == 20
            assert row[f"eval/{name}_floor"] == metric["floor"]
    final = by_name(run.summary["metrics"])
    copies = ["memorized-share", "aux-memorized-share"]
    assert list(final) == [*(f"{name}-classifier" for name in NAMES), "class-tv", *copies]
    assert all(metric.keys() >= FIELDS for metric in final.values())
    assert (final["fd-classifier"]["n"], final["fd-classifier"]["steps"]) == (30, 2)
    assert (final["fd-classifier"]["sampler"], final["fd-classifier"]["weights"]) == ("ddim", "ema")
    assert (final["aux-memorized-share"]["n"], final["aux-memorized-share"]["weights"]) == (12, "pretrained")
    assert final["memorized-share"]["reference_n"] == sum(run.stats[0]["data/num_examples"])
    assert run.summary["images/evaluation"] == 2 * 20 + 30
    for picture in (
        "plots/classes.png",
        "samples/rounds.png",
        "samples/closest-pairs.png",
        "auxiliary/closest-pairs.png",
    ):
        assert Image.open(run.path / picture).width > 100


@pytest.mark.parametrize(("decay", "weights"), [(0.5, "ema"), (0.0, "raw")])
def test_a_metric_says_which_weights_it_is_of(run_app, decay, weights):
    run = run_app(num_rounds=1, eval_final_images=12, server_ema_decay=decay, correction_steps=0)
    assert {metric["weights"] for metric in run.summary["metrics"]} == {weights}


@pytest.mark.slow
def test_metrics_are_the_same_for_the_same_seed_and_independent_of_cheap_ones(shared_run):
    first, again = shared_run(num_rounds=1, **EVAL), shared_run(num_rounds=1, eval_final_images=30)
    assert first.summary["metrics"] == again.summary["metrics"]
    assert "eval/metrics" not in again.rounds()[0]


def test_without_a_global_model_metrics_are_per_client_with_mean_and_spread(run_app):
    run = run_app(algorithm="local-only", num_rounds=1, **EVAL)
    for metrics in (run.summary["metrics"], run.rounds()[0]["eval/metrics"]):
        for metric in metrics:
            assert metric["weights"] == "raw"
            values = torch.tensor([float("nan") if v is None else v for v in metric["clients"]], dtype=torch.float64)
            assert len(values) == 4
            assert metric["value"] == pytest.approx(float(values.mean()))
            assert metric["std"] == pytest.approx(float(values.std()))
    names = sorted(path.name for path in (run.path / "samples").glob("closest-pairs*.png"))
    assert names == [f"closest-pairs-client-{k:04d}.png" for k in range(4)]


def test_a_conditional_model_draws_the_references_classes(run_app, monkeypatch):
    run = run_app(num_rounds=1, class_conditional=True, eval_final_images=25)
    assert by_name(run.summary["metrics"])["class-tv"]["n"] == 25
    labels = labels_like(torch.tensor([0] * 60 + [2] * 40), 10)
    assert labels.tolist() == [0] * 6 + [2] * 4


def test_a_run_that_fails_in_its_evaluation_keeps_what_it_computed(run_app, run_config, monkeypatch):
    def fail(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(Evaluator, "measure", fail)
    with pytest.raises(MemoryError):
        run_app(num_rounds=1, eval_final_images=12)
    run = Path(run_config["output-dir"]) / "run-0"
    assert (run / "pipeline" / "model_index.json").exists()
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"


def test_the_losses_of_the_timestep_bands_make_the_loss(shared_run):
    """T = 50 has bands of 13, 12, 13 and 12 timesteps; 4 draws put a quarter of t in each quarter of [0, T)."""
    row = shared_run(num_rounds=1, eval_draws=4).rounds()[0]
    bands = [row[f"eval/ema_loss_t{span}"] for span in ("0-12", "13-24", "25-37", "38-49")]
    assert bands[0] > bands[3]
    assert sum(bands) / 4 == pytest.approx(row["eval/ema_loss"], rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["fedavg", "fedddpm"])
def test_the_final_metrics_are_of_the_ema_after_several_rounds(run_app, config, algorithm):
    """Drawn and measured here again from the pipeline, which holds the EMA weights."""
    run = run_app(algorithm=algorithm, num_rounds=3, eval_final_images=30, server_ema_decay=0.9, seed=5)
    final = by_name(run.summary["metrics"])
    pipeline = DDPMPipeline.from_pretrained(run.path / "pipeline")
    drawn = {"sampler": "ddim", "steps": 2, "shape": (1, 8, 8)}
    seeds = image_seeds(5, "evaluate", 30)
    images = sample_images(pipeline.unet, pipeline.scheduler, seeds=seeds, **drawn)
    reference = create_evaluator(config).reference
    expected = frechet_distance(reference.extractor(images).vectors, reference.vectors)
    assert final["fd-classifier"]["value"] == pytest.approx(expected, rel=1e-5)
    assert final["fd-classifier"]["weights"] == "ema"
    assert ("aux-memorized-share" in final) == (algorithm == "fedddpm")


def test_labels_are_those_of_the_reference(run_app, config, monkeypatch):
    asked = []

    def sampled(*arguments, **options):
        asked.append(options["labels"])
        return sample_batches(*arguments, **options)

    monkeypatch.setattr(ensemble, "sample_batches", sampled)
    run_app(num_rounds=1, class_conditional=True, eval_final_images=360)
    assert torch.equal(asked[-1].bincount(), open_dataset(config.data, 0).test.labels.bincount())


@pytest.mark.slow
def test_the_sheet_of_pairs_shows_generated_images_over_training_images(run_app, config, monkeypatch):
    shown = {}
    monkeypatch.setattr(RunPictures, "save_pairs", lambda _, *args: shown.update({args[4]: args[:2]}))
    run = run_app(num_rounds=1, eval_final_images=30)
    training = {tuple(i.flatten().tolist()) for i in open_dataset(config.data, 0).train.images}
    for folder in ("samples", "auxiliary"):
        generated, train = shown[folder]
        assert {tuple(image.flatten().tolist()) for image in train} <= training
        assert not {tuple(image.flatten().tolist()) for image in generated} & training
    stored = datasets.load_from_disk(str(run.path / "auxiliary" / "dataset"))["image"]
    auxiliary = {tuple(np.asarray(image).flatten().tolist()) for image in stored}
    assert {tuple(image.flatten().tolist()) for image in shown["auxiliary"][0]} <= auxiliary


def test_a_model_that_draws_nan_goes_on_without_pictures_and_says_so(run_app, monkeypatch, caplog):
    def diverged(*_, **__):
        raise DivergedError("2 of 2 images hold NaN")

    monkeypatch.setattr(ensemble, "sample_batches", diverged)
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    run = run_app(num_rounds=1, eval_images=20)
    assert run.summary["status"] == "completed"
    assert "eval/metrics" not in run.rounds()[0]
    assert "round 1: no metrics: 2 of 2 images hold NaN" in caplog.text


def test_a_client_whose_model_draws_nan_costs_only_its_own_metrics_and_sheets(run_app, monkeypatch, caplog):
    """Metrics and sheets generate from the four clients' models one after the other; the second model diverges."""
    sample, calls = ensemble.sample_batches, itertools.count()

    def second_diverges(*arguments, **options):
        if next(calls) % 4 == 1:
            raise DivergedError("2 of 2 images hold NaN")
        return sample(*arguments, **options)

    monkeypatch.setattr(ensemble, "sample_batches", second_diverges)
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    run = run_app(algorithm="local-only", num_rounds=1, preview_every=1, preview_images=2, **EVAL)
    assert run.summary["status"] == "completed"
    left = [f"client-000{partition}" for partition in (0, 2, 3)]
    for metrics in (run.summary["metrics"], run.rounds()[0]["eval/metrics"]):
        assert metrics
        assert all(metric["client_names"] == left for metric in metrics)
        assert all(metric["left_out"] == ["client-0001"] for metric in metrics)
        assert all("without client-0001, whose images are not finite" in metric["note"] for metric in metrics)
    assert "the model of client-0001 is left out of the metrics: 2 of 2 images hold NaN" in caplog.text
    assert "no sheet of client-0001: 2 of 2 images hold NaN" in caplog.text
    assert sorted(path.stem[-11:] for path in run.path.glob("samples/round-*-client-*.png")) == left


def test_measuring_changes_nothing_of_the_training(shared_run):
    """Neither random streams, nor thread counts, nor the model's mode or weights."""
    measured, plain = shared_run(**MEASURED), shared_run(unet_dropout=0.1)
    assert measured.losses() == plain.losses()
