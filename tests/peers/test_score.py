"""The score of samples on private data: hand values on a line of numbers, and properties on digits."""

import statistics

import pytest
import torch
from sklearn.datasets import load_digits

from fedddpm_app.diffusion.images import ImageTensors, to_unit_range
from fedddpm_app.evaluation import manifolds
from fedddpm_app.evaluation.extractors import load_pixels_pca
from fedddpm_app.peers.novelty import Threshold, TrainingClass, similarity_of_distance
from fedddpm_app.peers.score import PrivateScore, embedder_of

SCALE = 16.0  # of the numbers on the line, as pixels


def line(*numbers):
    """Images of one pixel; ``on_line`` gives the numbers back."""
    return torch.tensor(numbers).float().div(SCALE).reshape(-1, 1, 1, 1)


def on_line(images):
    return images.flatten(1) * SCALE


def score_of(train, samples, *, labels=None, sample_labels=None, **options):
    labels, sample_labels = (each if each is None else torch.tensor(each) for each in (labels, sample_labels))
    peer = PrivateScore(line(*train), labels, line(1, 3), on_line, **options)
    return peer.score(line(*samples), sample_labels)


def test_hand_values():
    """The nearest neighbours of 0, 1, 2, 3 are all at 1: T = 1, and the similarity is 1 - 0.8 d.

    A copy of 0 (1.0), 1.1 (0.92) and 1.2 (0.84), both near 1, are confirmed; 2.5 (0.6) is a candidate of both 2 and 3;
    -1, at a distance of T, and 10 are none.
    """
    samples = [0, 1.1, 1.2, 2.5, 10, -1]
    found = score_of([0, 1, 2, 3], samples)
    candidate, confirmed = (1 + 0.92 + 0.84 + 0.6) / 4, (1 + 0.92 + 0.84) / 3
    distance = (statistics.mean(samples) - 2) ** 2 + (statistics.stdev(samples) - 2**0.5) ** 2
    assert (found.num_candidates, found.num_confirmed, found.matches) == (4, 3, [0, 1, 1])
    assert found.novelty == pytest.approx(1000 * confirmed * candidate * 3 / 6, rel=1e-5)
    assert found.distance == pytest.approx(distance, rel=1e-5)
    assert found.value() == pytest.approx((distance + found.novelty) / 2, rel=1e-5)
    assert found.value(with_novelty=False) == pytest.approx(distance / 2, rel=1e-5)


def test_matches_are_looked_for_in_the_class_of_a_sample():
    """In each class the nearest neighbours are at 2: T = 2. As class 1, the image 0 is at 1 from the nearest."""
    train, labels = [0, 1, 2, 3], [0, 1, 0, 1]
    assert score_of(train, [0, 9], labels=labels, sample_labels=[0, 1]).matches == [0]
    found = score_of(train, [0, 3.1], labels=labels, sample_labels=[1, 1])
    assert (found.num_candidates, found.matches) == (2, [3])
    found = score_of(train, [0, 0], labels=labels, sample_labels=[7, 1])  # of class 7 this peer has no images
    assert (found.num_candidates, found.num_confirmed, found.novelty) == (1, 0, 0.0)


def test_the_threshold_is_the_mean_less_half_the_deviation():
    """The nearest neighbours of 0, 1, 2, 4 are at 1, 1, 1, 2: mean 5/4, variance 3/16."""
    features = torch.tensor([[0.0], [1.0], [2.0], [4.0]], dtype=torch.float64)
    found = TrainingClass.of(torch.arange(4), features).threshold
    assert found.radius == pytest.approx(1.25 - 0.5 * (3 / 16) ** 0.5, rel=1e-12)


@pytest.mark.parametrize(
    "train",
    [[5], [5, 5, 7, 7], [*[5] * 8, 15]],
    ids=["one image", "all twice: T = 0", "mean - 0.5 std < 0"],
)
def test_copies_are_found_where_the_threshold_is_0(train):
    found = score_of(train, [5, 5.00001, 5.2])
    assert (found.num_candidates, found.matches) == (2, [0, 0])
    assert found.novelty == pytest.approx(1000 * 2 / 3)
    features = on_line(line(*train)).double()
    assert TrainingClass.of(torch.arange(len(train)), features).threshold.radius == 0


def test_the_similarity_is_bounded_and_falls_with_the_distance():
    place = torch.tensor([[0.0], [1e-6], [0.5], [1.0], [2.0], [9.0]], dtype=torch.float64)
    found = similarity_of_distance(place, torch.zeros_like(place), Threshold(radius=2.0, rounding=1e-5))
    assert found.tolist() == pytest.approx([1, 1, 0.8, 0.6, 0.2, 0])


def test_another_verifier_decides_which_pair_counts():
    """2.4 is a candidate of 2 and of 3; this verifier prefers the farther one, and confirms all."""

    def farther(generated, train, threshold):
        return 0.8 + 0.1 * (generated - train).abs().flatten() / threshold.radius

    found = score_of([0, 1, 2, 3], [2.4, 50], verifier=farther)
    assert (found.num_candidates, found.matches) == (1, [3])
    assert found.novelty == pytest.approx(1000 * 0.86 * 0.86 / 2, rel=1e-5)
    with pytest.raises(ValueError, match=r"similarity outside \[0, 1\]"):
        score_of([0, 1], [0, 0], verifier=lambda generated, train, threshold: 2 + generated[:, 0])
    with pytest.raises(ValueError, match="similarity outside"):
        score_of([0, 1], [0, 0], verifier=lambda generated, train, threshold: torch.nan * generated[:, 0])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": []}, "0 training and 2 held-out images"),
        ({"labels": [1]}, "labels of shape .* for 2 images"),
        ({"samples": [1]}, "1 samples cannot be scored"),
        ({"sample_labels": [1, 1]}, "for both training images and samples, or for neither"),
        ({"labels": [1, 1]}, "for both training images and samples, or for neither"),
        ({"samples": [1, torch.nan]}, "NaN or infinity"),
    ],
)
def test_what_cannot_be_scored_is_an_error(change, says):
    with pytest.raises(ValueError, match=says):
        score_of(**({"train": [1, 2], "samples": [1, 2]} | change))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Two peers and a pool, 400 digits each, and the peers' scores: 300 images to train on, 100 held out."""
    data = load_digits()
    images = (torch.tensor(data.images) * 255 / 16).round().to(torch.uint8)[:, None]
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:1200]
    parts = ImageTensors(images, torch.tensor(data.target)).select(order)
    peers = [parts.select(torch.arange(start, start + 400)) for start in (0, 400)]
    pool = parts.select(torch.arange(800, 1200))
    return peers, pool, [score_on(peer, tmp_path_factory.mktemp("cache"), str(k)) for k, peer in enumerate(peers)]


def score_on(peer, cache, digest, labelled=True):
    train = peer.select(torch.arange(300))
    extractor = load_pixels_pca(train, digest, cache, torch.device("cpu"))
    held_out = to_unit_range(peer.images[300:])
    labels = train.labels if labelled else None
    return PrivateScore(to_unit_range(train.images), labels, held_out, embedder_of(extractor))


def mixed(pool, owner, share, count=100):
    """``count`` images of the pool, a share of which is replaced by training images of the owner."""
    copied = int(share * count)
    index = torch.arange(count)
    images, labels = pool.images[index].clone(), pool.labels[index].clone()
    images[:copied], labels[:copied] = owner.images[2 * index[:copied]], owner.labels[2 * index[:copied]]
    return to_unit_range(images), labels


def test_copies_raise_the_score_of_their_owner_alone(digits):
    peers, pool, scores = digits
    for owner, score in enumerate(scores):
        samples = [mixed(pool, peers[owner], share) for share in (0, 0.01, 0.1, 0.5, 1)]
        own = [score.score(*each) for each in samples]
        assert [found.matches for found in own] == [[2 * k for k in range(count)] for count in (0, 1, 10, 50, 100)]
        assert own[0].novelty == 0
        assert own[0].num_candidates > 0
        assert [found.value() for found in own] == sorted({found.value() for found in own})
        others = [scores[1 - owner].score(*each) for each in samples]
        assert [(found.num_confirmed, found.novelty) for found in others] == [(0, 0.0)] * 5


def test_noise_in_a_copy_does_not_hide_it(digits):
    peers, pool, scores = digits
    samples, labels = mixed(pool, peers[0], 1)
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0)) * 4 / 127.5
    assert scores[0].score((samples + noise).clamp(-1, 1), labels).num_confirmed >= 95


def test_without_labels_copies_are_found_in_all_classes(digits, tmp_path):
    peers, pool, _ = digits
    samples, _ = mixed(pool, peers[0], 0.3)
    found = score_on(peers[0], tmp_path, "0", labelled=False).score(samples, None)
    assert found.matches == [2 * k for k in range(30)]


def test_neither_order_nor_blocks_change_a_score(digits, monkeypatch):
    peers, pool, scores = digits
    samples, labels = mixed(pool, peers[0], 0.2)
    found = scores[0].score(samples, labels)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    shuffled = scores[0].score(samples[order], labels[order])
    assert sorted(shuffled.matches) == found.matches
    assert shuffled.value() == pytest.approx(found.value(), rel=1e-9)
    monkeypatch.setattr(manifolds, "_BLOCK_BYTES", 8 * 30)
    assert scores[0].score(samples, labels) == found
