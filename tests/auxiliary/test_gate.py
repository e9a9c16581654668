"""The check of a client's own model: near copies are found beside real images, in pixels and in features."""

from dataclasses import replace

import pytest
import torch

from fedddpm_app.auxiliary import gate as module
from fedddpm_app.auxiliary.gate import Gate, check_enough, check_settings, check_share, keys_of_no_check, open_gate
from fedddpm_app.config import ConfigError, keys_without_effect, load_config
from fedddpm_app.evaluation.memorization import among_themselves, nearest_vectors
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.training.declined import DeclinedError

SETTINGS = {"neighbours": 10, "rate": 0.01}


def noise(count, seed):
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def near(images, by=1):
    """The images, each pixel at most ``by`` grey levels away."""
    return (images.int() + torch.randint(-by, by + 1, images.shape)).clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("held_out", [0, 3, 300])
def test_near_copies_are_found_and_independent_images_are_not(held_out):
    train = noise(40, 0)
    gate = Gate(train, noise(held_out, 1), **SETTINGS)
    assert gate.copies(train[:5]).all()
    assert gate.copies(near(train)).all()
    assert gate.copies(noise(400, 2)).double().mean() < 0.06


def test_the_threshold_is_that_of_real_images_and_few_held_out_ones_are_joined_by_the_training_images():
    """Training images that differ pairwise by 1, 2 and 4 grey levels of one pixel; k = 2 others for each."""
    train = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    train[:, 0, 0, 0] = torch.tensor([0, 1, 3])
    ratios = among_themselves(train, 2, 10)  # distances to others: (1, 3), (1, 2), (2, 3)
    assert ratios.tolist() == pytest.approx([1 / 2, 1 / 1.5, 2 / 2.5])
    assert among_themselves(train, 1, 10).tolist() == [1, 1, 1]
    assert among_themselves(train.repeat(2, 1, 1, 1), 2, 10).tolist() == []  # all have a copy
    assert Gate(train, train[:0], neighbours=2, rate=0.01)._pixels.threshold == pytest.approx(1 / 2)
    held_out = torch.tensor([200, 100]).reshape(2, 1, 1, 1).expand(2, 1, 2, 2).to(torch.uint8)
    gate = Gate(train, held_out, neighbours=2, rate=0.3)  # five ratios: the second one is at 0.2
    assert gate._pixels.threshold == pytest.approx(1 / 1.5)


def test_exact_copies_are_found_where_every_image_has_a_twin():
    """Nothing real is left for a calibration: then every image counts as a copy."""
    train = noise(4, 0).repeat(2, 1, 1, 1)
    assert Gate(train, train[:2], **SETTINGS).copies(noise(9, 1)).all()


def test_a_near_duplicate_among_real_images_does_not_switch_the_check_off():
    """Such as a picture that was saved twice, once as a JPEG: its ratio would be the threshold of 50 images."""
    train = noise(40, 0)
    for doubled, held_out in ((torch.cat([train, near(train[:1], 2)]), noise(9, 1)), (train, near(train[:1], 2))):
        gate = Gate(doubled, held_out, **SETTINGS)
        assert gate.copies(near(train[5:], 20)).all()
        assert gate.copies(noise(400, 2)).double().mean() < 0.06


def test_copies_of_mirror_images_are_found_where_the_model_was_trained_on_them():
    train, held_out = noise(40, 0), noise(20, 1)
    mirrored = near(train.flip(-1))
    assert not Gate(train, held_out, **SETTINGS).copies(mirrored).any()
    for embed in (None, lambda images: images.double().flatten(1).float()):
        gate = Gate(train, held_out, **SETTINGS, embed=embed, mirrored=True)
        assert gate.copies(mirrored).all()
        assert gate.copies(near(train)).all()
        assert gate.copies(noise(400, 2)).double().mean() < 0.12


def test_one_image_is_too_few():
    with pytest.raises(DeclinedError, match="1 training image is too few to find out"):
        Gate(noise(1, 0), noise(5, 1), **SETTINGS)


def test_copies_that_pixels_do_not_show_are_found_in_features():
    """The features do not know the order of the columns."""
    train, held_out = noise(40, 0), noise(20, 1)

    def embed(images):
        return images.double().sort(-1).values.flatten(1).float()

    moved = train.roll(3, dims=-1)
    assert Gate(train, held_out, **SETTINGS).copies(moved).double().mean() < 0.1
    gate = Gate(train, held_out, **SETTINGS, embed=embed)
    assert gate.copies(moved).all()
    assert gate.copies(near(train)).all()
    assert gate.copies(noise(400, 2)).double().mean() < 0.12


def test_twins_do_not_switch_the_check_of_features_off():
    """Features of copies differ in their last digits."""
    train = torch.cat([noise(40, 0), noise(5, 0)])
    random = torch.Generator().manual_seed(0)

    def embed(images):
        return images.flatten(1).float() * (1 + 1e-6 * torch.randn(len(images), 1, generator=random))

    gate = Gate(train, torch.cat([noise(20, 1), train[:4]]), **SETTINGS, embed=embed)
    assert gate._features.threshold > 0.5
    assert gate.copies(near(train)).all()


def test_vectors_are_compared_by_their_distance():
    train = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
    found = nearest_vectors(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), train, k=2)
    assert found.index.tolist() == [1, 0]
    assert found.distance.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert found.ratio.tolist() == pytest.approx([0.0, 1 / ((1 + 18**0.5) / 2)], abs=1e-6)
    for vectors, against, k in (
        (train[0], train, 2),
        (train, train[:0], 2),
        (train, train[:, :1], 2),
        (train, train, 0),
    ):
        with pytest.raises(ValueError, match="vectors are"):
            nearest_vectors(vectors, against, k)


def test_the_gate_of_a_client_has_its_own_images(config):
    task = DiffusionTask(config)
    mine, others = (task.train_data(p).batch(torch.arange(20)).images for p in (0, 1))
    gate = open_gate(config, task, 0)
    assert gate.copies(module.to_uint8(mine)).all()
    assert not gate.copies(module.to_uint8(others)).any()


def test_a_real_extractor_can_be_named(run_config):
    config = load_config(run_config | {"memorization-extractor": "efficientnet-lite0"})
    embed = module._embedder(config)
    assert embed(noise(2, 0)).shape == (2, 1280)
    missing = load_config(run_config | {"memorization-extractor": "inception-v3"})
    with pytest.raises(ConfigError, match=r"memorization-extractor = .* needs inception-weights"):
        check_settings(missing)
    check_settings(config)


def test_the_weights_of_its_extractor_have_an_effect(run_config):
    given = {"memorization-extractor": "inception-v3", "inception-weights": "/weights", "eval-extractor": "classifier"}
    assert "inception-weights" in keys_without_effect(run_config | given)
    assert "inception-weights" not in keys_without_effect(run_config | given | {"memorization-check": "always"})


def test_limits(config):
    copies = torch.tensor([True, False, False, False])
    limit = replace(config, sharing=replace(config.sharing, max_memorized_share=0.25, min_images_to_share=7))
    assert check_share(limit, copies, 9) == 0.25
    stricter = replace(config, sharing=replace(config.sharing, max_memorized_share=0.24))
    with pytest.raises(DeclinedError, match=r"1 of 4 images .* near copies of its 9 .* max-memorized-share = 0.24"):
        check_share(stricter, copies, 9)
    check_enough(limit, 7)
    with pytest.raises(DeclinedError, match="6 training images, and min-images-to-share = 7"):
        check_enough(limit, 6)


@pytest.mark.parametrize(
    ("settings", "checks"),
    [
        ({}, False),
        ({"auxiliary-sharing": "images"}, True),
        ({"auxiliary-sharing": "images", "memorization-check": "never"}, False),
        ({"memorization-check": "always"}, True),
        ({"partition": "sites", "dataset": "path:/x"}, True),
    ],
)
def test_clients_check_by_themselves_where_their_data_are_private(run_config, settings, checks):
    config = load_config(run_config | settings)
    assert config.checks_memorization is checks
    assert ("max-memorized-share" in keys_of_no_check(config)) is not checks
