"""The whole way from images to metrics."""

import dataclasses
import json
import math
import subprocess
import sys

import pytest
import torch

from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.evaluation import comparison
from fedddpm_app.evaluation.comparison import Measured, spread
from fedddpm_app.evaluation.copies import CopyDetector
from fedddpm_app.evaluation.distances import frechet_distance, kernel_distance
from fedddpm_app.evaluation.metrics import CAVEAT, Metric, SamplingInfo, mean_over_clients
from fedddpm_app.evaluation.reference import RealImages, Reference, divide, for_division
from tests.conftest import ROOT
from tests.evaluation.conftest import values

SAMPLING = SamplingInfo("ddim", 50, "ema")
NAMES = ["fd", "kd", "score", "precision", "recall", "density", "coverage"]
FIELDS = {
    "name", "value", "std", "n", "reference", "reference_n", "reference_digest", "extractor", "extractor_digest",
    "sampler", "steps", "weights", "floor", "floor_std", "floor_n", "floor_reference_n", "note",
}  # fmt: skip


def noise_like(images, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, *images.shape[1:]), generator=generator, dtype=torch.uint8)


def test_every_metric_tells_what_it_was_taken_of(evaluator_of, real):
    evaluator = evaluator_of()
    evaluation = evaluator.measure([noise_like(real.test.images, 100)], SAMPLING)
    metrics = {metric.name: metric.to_dict() for metric in evaluation.metrics}
    assert list(metrics) == [*(f"{name}-classifier" for name in NAMES), "class-tv", "memorized-share"]
    for metric in metrics.values():
        assert metric.keys() >= FIELDS
        assert (metric["n"], metric["sampler"], metric["steps"], metric["weights"]) == (100, "ddim", 50, "ema")
        json.dumps(metric, allow_nan=False)
    fd = metrics["fd-classifier"]
    assert (fd["reference"], fd["reference_n"], fd["floor_n"], fd["floor_reference_n"]) == ("test", 360, 100, 360)
    assert fd["reference_digest"] == real.digests["test"][:16]
    assert fd["extractor_digest"] == evaluator.reference.extractor.digest
    assert metrics["recall-classifier"]["reference_n"] == 100  # as many as were generated
    assert metrics["memorized-share"]["reference"] == "train"
    assert metrics["memorized-share"]["reference_n"] == 1437


def test_the_values_are_those_of_the_measures(evaluator_of, real):
    evaluator = evaluator_of()
    images = noise_like(real.test.images, 300)
    found = values(evaluator.measure(torch.split(images, 77), SAMPLING))
    extractor = evaluator.reference.extractor
    expected = frechet_distance(extractor(images).vectors, extractor(real.test.images).vectors)
    assert found["fd-classifier"] == pytest.approx(expected, rel=1e-9)


def test_real_images_score_about_the_floor_and_noise_far_from_it(evaluator_of, real):
    evaluator = evaluator_of()
    good = {f.name: f for f in evaluator.measure([real.train.images[:300]], SAMPLING, find_copies=False).metrics}
    bad = values(evaluator.measure([noise_like(real.test.images, 300)], SAMPLING, find_copies=False))
    for name in ("fd-classifier", "class-tv"):
        assert good[name].value < 2 * good[name].floor < bad[name]
    for name in ("recall-classifier", "coverage-classifier", "precision-classifier"):
        assert good[name].value > 0.9 * good[name].floor > bad[name]


def test_a_forgotten_class_shows(evaluator_of, real):
    evaluator = evaluator_of()
    kept = real.train.labels != 3
    whole = evaluator.measure([real.train.images], SAMPLING, find_copies=False)
    without = evaluator.measure([real.train.images[kept]], SAMPLING, find_copies=False)
    assert without.classes.details["class_counts"]["generated"][3] <= 2
    assert whole.classes.details["class_counts"]["generated"][3] > 100
    assert values(without)["class-tv"] > values(whole)["class-tv"] + 0.05
    assert values(without)["coverage-classifier"] < values(whole)["coverage-classifier"] - 0.05
    assert values(without)["fd-classifier"] > 2 * values(whole)["fd-classifier"]
    counts = next(f for f in without.metrics if f.name == "class-tv").details["class_counts"]
    assert counts["real"] == real.test.labels.bincount(minlength=10).tolist()


def test_a_few_images_repeated_show(evaluator_of, real):
    evaluator = evaluator_of()
    repeated = values(evaluator.measure([real.train.images[:10].repeat(30, 1, 1, 1)], SAMPLING, find_copies=False))
    fresh = values(evaluator.measure([real.train.images[:300]], SAMPLING, find_copies=False))
    assert repeated["recall-classifier"] < 0.2 < fresh["recall-classifier"]
    assert repeated["coverage-classifier"] < 0.5 * fresh["coverage-classifier"]
    assert repeated["fd-classifier"] > 3 * fresh["fd-classifier"]


@pytest.mark.parametrize("sizes", [[200], [1] * 200, [64, 64, 64, 8]])
def test_the_batches_do_not_matter(evaluator_of, real, sizes):
    images = noise_like(real.test.images, 200)
    found = values(evaluator_of().measure(torch.split(images, sizes), SAMPLING))
    assert found == pytest.approx(values(evaluator_of().measure([images], SAMPLING)), rel=1e-6)


def test_reference_features_and_floors_are_computed_once(evaluator_of, real, tmp_path, cache_dir):
    first = evaluator_of(cache_dir=tmp_path)
    before = values(first.measure([real.train.images[:100]], SAMPLING))
    again = evaluator_of(cache_dir=tmp_path)
    calls = []
    original = again.reference.extractor

    class Counting:
        name, digest, num_features = original.name, original.digest, original.num_features
        device = original.device

        def __call__(self, images):
            calls.append(len(images))
            return original(images)

    again.reference.extractor = again.reference.classifier = Counting()
    assert values(again.measure([real.train.images[:100]], SAMPLING)) == before
    assert calls == [100]  # the generated images only


@pytest.mark.parametrize("conditional", [False, True])
def test_the_floor_is_divided_as_a_generator_and_the_reference_are(conditional):
    """The classes of the reference do not vary, those of generated images do; only a short class repeats images."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.tensor([0] * 30 + [1] * 50 + [2] * 20)
    labels = reference.repeat(4)[torch.randperm(400, generator=generator)]
    counts = []
    for _ in range(50):
        one, other = divide(labels, 300, 100, reference, generator, conditional=conditional)
        assert (len(one), len(other), set(one.tolist()) & set(other.tolist())) == (300, 100, set())
        assert labels[other].bincount().tolist() == [30, 50, 20]
        assert len(other.unique()) == 100
        assert len(one.unique()) > 260
        counts.append(labels[one].bincount(minlength=3))
    spread = torch.stack(counts).double().std(0)
    if conditional:
        assert torch.equal(counts[0], torch.tensor([90, 150, 60]))
        assert not spread.any()
    else:
        expected = (300 * torch.tensor([0.3, 0.5, 0.2]) * torch.tensor([0.7, 0.5, 0.8])).sqrt()
        assert (spread / expected - 1).abs().max() < 0.3


def test_the_images_for_a_division_have_the_classes_of_both_sets():
    """Else the first set would lack the classes of which the reference has more than the others."""
    reference, labels = torch.tensor([0] * 30 + [1] * 10), torch.tensor([1, 0, 1, 2] * 100)
    places = for_division(labels, 80, 40, reference)
    assert labels[places].bincount().tolist() == [20 + 30, 40 + 10, 20]
    assert len(places.unique()) == 120
    assert places[labels[places] == 2].max() < 80  # the first ones
    short = for_division(torch.tensor([0, 1, 1, 1, 1, 1]), 2, 4, torch.tensor([0, 0]))
    assert sorted(short.tolist()) == [*range(6)]
    assert for_division(None, 3, 2, reference).tolist() == [0, 1, 2, 3, 4]


def test_classes_that_only_one_side_has_do_not_stop_a_division():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 0, 0, 3, 3, 1])
    for conditional in (False, True):
        one, other = divide(labels, 4, 2, torch.tensor([5, 5, 1]), generator, conditional=conditional)
        assert len(one) == 4
        assert not set(one.tolist()) & set(other.tolist())


def test_the_floor_is_of_disjoint_images_and_as_many_as_generated(evaluator_of, real):
    reference = evaluator_of().reference
    floor = reference.floor(100)
    assert (floor.n, floor.reference_n) == (100, 360)
    most = reference.floor(5000)
    assert most.n == 898  # half of 1,797
    assert most.n + most.reference_n <= 1797
    assert reference.floor(898).measures["fd"].value < floor.measures["fd"].value  # less bias
    notes = {f.note for f in evaluator_of().measure([noise_like(real.test.images, 1000)], SAMPLING).metrics[:3]}
    ((few, noise),) = {tuple(note.split(CAVEAT)) for note in notes}
    assert few == "the floor compares 898 images with 360: the data have no more"
    assert noise.startswith("the images are still noise: ")


def test_fewer_images_than_feature_dimensions_is_noted_beside_the_distance(evaluator_of, real):
    metrics = {f.name: f for f in evaluator_of().measure([real.train.images[:30]], SAMPLING).metrics}
    assert "30 images are fewer than the 64 feature dimensions" in metrics["fd-classifier"].note
    assert metrics["recall-classifier"].note == ""


def test_what_cannot_be_told_of_few_images_is_nan_with_a_note(evaluator_of, real):
    metrics = {f.name: f for f in evaluator_of().measure([real.train.images[:3]], SAMPLING).metrics}
    for name in ("kd-classifier", "precision-classifier", "score-classifier"):
        assert math.isnan(metrics[name].value)
        assert "not defined for 3 generated" in metrics[name].note
    assert not math.isnan(metrics["class-tv"].value)


def test_data_without_labels_have_no_class_metrics(evaluator_of, real):
    unlabelled = RealImages(ImageTensors(real.train.images), ImageTensors(real.test.images), real.digests)
    evaluation = evaluator_of(extractor="pixels-pca", real=unlabelled).measure([real.train.images[:50]], SAMPLING)
    assert list(values(evaluation)) == [
        *(f"{name}-pixels-pca" for name in NAMES if name != "score"), "memorized-share"
    ]  # fmt: skip
    assert evaluation.classes is None


def test_another_extractor_still_has_the_classifiers_classes(evaluator_of, real):
    evaluation = evaluator_of(extractor="pixels-pca").measure([real.train.images[:50]], SAMPLING)
    metrics = {f.name: f for f in evaluation.metrics}
    assert metrics["class-tv"].extractor == "classifier"
    assert metrics["fd-pixels-pca"].extractor == "pixels-pca"


def test_the_train_split_as_reference(evaluator_of, real):
    fd = evaluator_of("train").measure([real.test.images], SAMPLING).metrics[0]
    assert (fd.reference, fd.reference_n, fd.floor_reference_n) == ("train", 1437, 1437)
    assert fd.reference_digest == real.digests["train"][:16]


def test_a_standard_inception_gives_fid_and_others_do_not(monkeypatch):
    from fedddpm_app.evaluation.comparison import name_of
    from fedddpm_app.evaluation.extractors import InceptionV3

    network = object.__new__(InceptionV3)
    network.standard = True
    assert [name_of(m, network) for m in ("fd", "kd", "score", "recall")] == [
        "fid", "kid", "inception-score", "recall-inception-v3"
    ]  # fmt: skip
    network.standard = False
    assert name_of("fd", network) == "fd-inception-v3"


@pytest.mark.parametrize(
    ("extractor", "reference_n", "n"),
    [("classifier", 360, 200), pytest.param("efficientnet-lite0", 100, 60, marks=pytest.mark.slow)],
)
def test_the_metrics_order_real_blurred_and_noise(evaluator_of, real, extractor, reference_n, n):
    few = RealImages(real.train, real.test.select(torch.arange(reference_n)), {**real.digests, "test": f"{n:064d}"})
    evaluator = evaluator_of(extractor=extractor, real=few)
    images = real.train.images[-n:]
    padded = torch.nn.functional.pad(images.float(), (1, 1, 1, 1), mode="replicate")
    blur = torch.nn.functional.avg_pool2d(padded, 3, 1)
    sets = [images, (0.5 * images + 0.5 * blur).round().to(torch.uint8), noise_like(images, n)]
    good, blurred, noise = (values(evaluator.measure([each], SAMPLING, find_copies=False)) for each in sets)
    for name in ("fd", "kd"):
        assert good[f"{name}-{extractor}"] < blurred[f"{name}-{extractor}"] < noise[f"{name}-{extractor}"]
    for name in ("recall", "coverage"):
        assert good[f"{name}-{extractor}"] > blurred[f"{name}-{extractor}"] > noise[f"{name}-{extractor}"]
    for name in ("precision", "density"):  # which a blur does not lower
        assert blurred[f"{name}-{extractor}"] > 0.2 > 10 * noise[f"{name}-{extractor}"]


def test_the_classifier_keeps_what_is_no_digit_apart(evaluator_of, real):
    generator = torch.Generator().manual_seed(3)
    images = real.train.images[-200:]
    grain = (torch.randn(images.shape, generator=generator) * 40 + 100).clamp(0, 255).to(torch.uint8)
    for garbage in (noise_like(images, 200), grain, torch.zeros_like(images)):
        found = values(evaluator_of().measure([garbage], SAMPLING, find_copies=False))
        assert found["precision-classifier"] <= 0.02
        assert found["coverage-classifier"] <= 0.02


def test_the_kernel_distance_of_two_real_halves_is_zero_within_its_error(evaluator_of, real):
    """The standard error is that of other random halves of the same images: what chance alone makes of it."""
    images = torch.cat([real.test.images, real.train.images])
    vectors = evaluator_of().reference.extractor(images).vectors
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(30):
        order = torch.randperm(len(vectors), generator=generator)
        halves = vectors[order[:898]], vectors[order[898:]]
        found.append(kernel_distance(*halves, seed=0, subsets=20).value)
    error = torch.tensor(found[1:]).std()
    assert abs(found[0]) < 3 * error
    assert abs(sum(found) / len(found)) < 3 * error / len(found) ** 0.5


def test_the_cache_tells_data_sets_apart(evaluator_of, real, tmp_path):
    """Another digest of the training split is another floor, though sizes and extractor are the same."""
    one = evaluator_of(cache_dir=tmp_path).reference
    before = one.floor(50).measures["fd"].value
    train = ImageTensors(real.train.images.flip(-1), real.train.labels)
    other = Reference(
        RealImages(train, real.test, {**real.digests, "train": "0" * 64}),
        "test",
        one.extractor,
        one.classifier,
        tmp_path,
    )
    assert other.floor(50).measures["fd"].value != before


@pytest.mark.parametrize("name", [name for names in comparison.METRICS for name in names])
def test_every_metric_is_documented(name):
    assert f"| `{name}-X` |" in (ROOT / "docs" / "evaluation.md").read_text(), f"docs/evaluation.md: a row `{name}-X`"
    assert name in NAMES, f"add {name} to NAMES here"


def test_a_cached_floor_that_lacks_a_metric_is_computed_again(evaluator_of, monkeypatch, tmp_path):
    """A new metric is one line in ``METRICS``: a floor that an earlier version wrote does not end a run."""
    evaluator = evaluator_of(cache_dir=tmp_path)
    images = evaluator.reference.images.images[:50]
    before = evaluator.measure([images], SAMPLING, find_copies=False).metrics
    mean = lambda pair: {"mean": Measured(float(pair.generated.vectors.mean()), math.nan, len(pair.real))}  # noqa: E731
    monkeypatch.setattr(comparison, "METRICS", {**comparison.METRICS, ("mean",): mean})
    after = {metric.name: metric for metric in evaluator.measure([images], SAMPLING, find_copies=False).metrics}
    assert math.isfinite(after["mean-classifier"].floor)
    assert [after[metric.name].floor for metric in before] == [metric.floor for metric in before]


def test_the_cache_tells_numbers_of_neighbours_apart(real, tmp_path):
    options = {"rate": 0.01, "digest": "d", "cache_dir": tmp_path}
    few = CopyDetector(real.train.images, real.test.images, neighbours=5, **options)
    many = CopyDetector(real.train.images, real.test.images, neighbours=50, **options)
    assert not torch.equal(few.held_out_ratios, many.held_out_ratios)


def test_rows_are_spread_evenly():
    assert spread(torch.arange(10), 4).tolist() == [0, 3, 6, 9]
    assert spread(torch.arange(3), 5).tolist() == [0, 1, 2]


def test_a_small_reference_is_noted_too(evaluator_of, real):
    few = RealImages(real.train, real.test.select(torch.arange(20)), {**real.digests, "test": "1" * 64})
    fd = evaluator_of(real=few).measure([noise_like(real.test.images, 100)], SAMPLING, find_copies=False).metrics[0]
    assert "20 images are fewer than the 64 feature dimensions" in fd.note


def test_copies_are_found_though_the_data_hold_some_in_both_splits(real, tmp_path):
    """Two per cent of the held-out images are training images: they are no yardstick of what is new."""
    held_out = torch.cat([real.test.images, real.train.images[:8]])
    options = {"neighbours": 50, "rate": 0.01, "digest": "e", "cache_dir": tmp_path}
    detector = CopyDetector(real.train.images, held_out, **options)
    search = detector.start()
    search.add(torch.cat([real.train.images[100:150], noise_like(held_out, 50)]))
    metric = search.metric("train", SAMPLING)
    assert metric.value == 0.5
    assert metric.details["held_out_duplicates"] == 8
    assert detector.threshold > 0.1
    assert metric.floor < 0.05
    assert metric.floor_n == 368


def test_the_floor_counts_the_images_that_real_data_repeat(real, tmp_path):
    """Those of a perfect generator count, too: here, 10 of 190 images, as among the held-out ones."""
    options = {"neighbours": 50, "rate": 0.01, "digest": "g", "cache_dir": tmp_path}
    held_out, drawn = (torch.cat([real.test.images[k::2], real.train.images[10 * k : 10 * k + 10]]) for k in range(2))
    search = CopyDetector(real.train.images, held_out, **options).start()
    search.add(drawn)
    metric = search.metric("train", SAMPLING)
    assert metric.value >= 10 / 190
    assert metric.floor == pytest.approx(metric.value, abs=0.02)


def test_too_few_held_out_images_for_a_rate_are_noted(real, tmp_path):
    options = {"neighbours": 50, "rate": 0.01, "digest": "f", "cache_dir": tmp_path}
    search = CopyDetector(real.train.images, real.test.images[:30], **options).start()
    search.add(real.train.images[:5])
    assert "30 held-out images are too few to calibrate a rate of 0.01" in search.metric("train", SAMPLING).note


def test_planted_copies_are_flagged_and_held_out_images_at_the_stated_rate(evaluator_of, real):
    evaluator = evaluator_of()
    generator = torch.Generator().manual_seed(0)
    chosen = torch.arange(0, 1437, 100)
    grain = torch.randn(len(chosen), 1, 8, 8, generator=generator) * 2
    planted = (real.train.images[chosen].float() + grain).round().clamp(0, 255).to(torch.uint8)
    fresh = noise_like(real.test.images, 85)
    evaluation = evaluator.measure([torch.cat([fresh, planted])], SAMPLING)
    share = evaluation.metrics[-1]
    assert share.name == "memorized-share"
    assert share.value == pytest.approx(len(chosen) / 100)  # the planted ones and no other
    assert share.details["rate"] == 0.01
    assert share.floor <= 0.01 + 3 * (0.01 / 360) ** 0.5  # three standard deviations of 360 draws at that rate
    assert torch.equal(evaluation.pairs.generated[: len(chosen)].sort(0).values, planted.sort(0).values)
    found = {tuple(image.flatten().tolist()) for image in evaluation.pairs.train[: len(chosen)]}
    assert found == {tuple(image.flatten().tolist()) for image in real.train.images[chosen]}


def test_exact_copies_are_counted(evaluator_of, real):
    share = evaluator_of().measure([real.train.images[:20]], SAMPLING).metrics[-1]
    assert share.value == 1.0
    assert share.details["exact_copies"] == 20
    assert share.details["least_ratio"] == 0.0


def metric(value, note=""):
    return Metric("fd-x", value, None, 10, "test", 5, "d", "x", "e", SAMPLING, 0.5, 0.1, 10, 5, note)


def test_the_mean_over_clients_has_its_spread_and_every_value():
    assert mean_over_clients({"": [metric(3.0)]}) == [metric(3.0)]  # of a global model
    (mean,) = mean_over_clients({"a": [metric(1.0)], "b": [metric(2.0)], "c": [metric(6.0)]})
    assert mean.value == 3.0
    assert mean.std == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    of_models = {"clients": [1.0, 2.0, 6.0], "client_names": ["a", "b", "c"], "client_details": [{}, {}, {}]}
    assert mean.details == of_models | {"median": 2.0}
    (alone,) = mean_over_clients({"a": [metric(3.0)]})
    assert (alone.value, alone.std, alone.details["client_names"]) == (3.0, None, ["a"])
    (part,) = mean_over_clients({"a": [metric(1.0)], "b": [metric(math.nan, "none")]})
    assert (part.value, part.std, part.note) == (1.0, None, "none (1 of 2 models)")
    notes = [f"the images are still noise: {share}% of it" for share in (20, 30)] + [""]
    (noisy,) = mean_over_clients({name: [metric(1.0, note)] for name, note in zip("abc", notes, strict=True)})
    assert noisy.note == "the images are still noise (2 of 3 models)"
    assert dataclasses.replace(mean, value=1.0, std=None, details={}) == metric(1.0)
    (part,) = mean_over_clients({"a": [metric(1.0, "few")]}, ["b", "c"])
    assert part.note == "few (1 of 1 models); without b, c, whose images are not finite"
    assert part.to_dict()["left_out"] == ["b", "c"]


MEMORY = """
import resource, sys, torch
from pathlib import Path
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.evaluation.copies import CopyDetector
from fedddpm_app.evaluation.evaluator import Evaluator
from fedddpm_app.evaluation.extractors import create_extractor
from fedddpm_app.evaluation.metrics import SamplingInfo
from fedddpm_app.evaluation.reference import RealImages, Reference

def images(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 96, 96), generator=generator, dtype=torch.uint8)

torch.set_num_threads(2)
folder, count = Path(sys.argv[1]), int(sys.argv[2])
real = RealImages(ImageTensors(images(200, 1)), ImageTensors(images(100, 2)), {"train": "a" * 64, "test": "b" * 64})
extractor = create_extractor(
    "pixels-pca", train=real.train, data_digest="a" * 16, cache_dir=folder, device=torch.device("cpu")
)
options = {"neighbours": 50, "rate": 0.01, "digest": "c", "cache_dir": folder}
evaluator = Evaluator(
    Reference(real, "test", extractor, None, folder),
    lambda: CopyDetector(real.train.images, real.test.images, **options),
)
evaluator.measure((images(250, 10 + k) for k in range(count // 250)), SamplingInfo("x", 1, "raw"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, extractor.num_features)
"""


@pytest.mark.long
@pytest.mark.slow
def test_memory_grows_with_the_features_and_not_with_the_images(tmp_path):
    """8,000 images more are 221 MB, their 64 features 2 MB; room is left for the blocks that work is done in."""
    peaks = {}
    for count in (250, 2000, 10_000):  # the first for what is computed once: features, floor
        command = [sys.executable, "-c", MEMORY, str(tmp_path), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[count], num_features = map(float, done.stdout.split())
    features_mb = (10_000 - 2000) * num_features * 4 / 1e6
    assert peaks[10_000] - peaks[2000] < 4 * features_mb + 100
