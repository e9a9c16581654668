import logging

import pytest
import torch

from fedddpm_app.config import ConfigError
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.evaluation.extractors import classifier as module
from fedddpm_app.evaluation.extractors import load_classifier
from fedddpm_app.progress import parse_line
from tests.evaluation.extractors.conftest import CPU


def noise(count, channels=1, height=8, width=8, classes=3):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    return ImageTensors(images, torch.arange(count) % classes)


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(module, "_STEPS", (3, 3))


def test_it_learns_the_digits(digits, classifier):
    _, test = digits
    features = classifier(test.images)
    assert features.vectors.shape == (len(test), 64)
    assert features.logits.shape == (len(test), 10)
    assert features.vectors.dtype == features.logits.dtype == torch.float32
    assert float((features.logits.argmax(1) == test.labels).float().mean()) > 0.97


def test_it_is_loaded_the_next_time(digits, classifier, cache_dir, monkeypatch):
    monkeypatch.setattr(module, "_train", lambda *_: pytest.fail("trained again"))
    again = load_classifier(digits[0], "digits", cache_dir, CPU)
    assert again.digest == classifier.digest
    assert torch.equal(again(digits[1].images).vectors, classifier(digits[1].images).vectors)


def test_an_image_has_the_same_features_alone_and_among_others(digits, classifier):
    images = digits[1].images
    torch.testing.assert_close(classifier(images[300:301]).vectors, classifier(images).vectors[300:301])


def test_weights_depend_on_the_data_alone(tmp_path, short):
    data, before = noise(50), torch.get_num_threads()
    digests = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(threads)
        state = torch.get_rng_state()
        with torch.no_grad():
            digests.append(load_classifier(data, "noise", tmp_path / str(threads), CPU).digest)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert digests[0] == digests[1]
    other = ImageTensors(255 - data.images, data.labels)
    assert load_classifier(other, "other", tmp_path / "1", CPU).digest != digests[0]


def test_thread_count_is_restored_after_a_failure(tmp_path, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(module, "_run_steps", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        load_classifier(noise(5), "noise", tmp_path, CPU)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (1, 28, 28), (3, 5, 40), (1, 1, 1)])
def test_any_image_size(tmp_path, short, channels, height, width):
    data = noise(5, channels, height, width)
    extractor = load_classifier(data, "noise", tmp_path, CPU)
    assert extractor(data.images).logits.shape == (5, 3)
    assert extractor(noise(2, channels, 17, 12).images).vectors.shape == (2, 64)
    assert extractor(data.images[:0]).logits.shape == (0, 3)


def test_other_sizes_have_files_of_their_own(tmp_path, short):
    for side in (8, 9):
        load_classifier(noise(5, 1, side, side), "noise", tmp_path, CPU)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


@pytest.mark.parametrize(("count", "steps"), [(10, 200), (1437, 200), (10_000, 390), (60_000, 2000)])
def test_steps_follow_the_number_of_images(monkeypatch, count, steps):
    class StopError(Exception):
        pass

    def stop(optimizer, rate, total_steps, **_):
        assert total_steps == steps
        raise StopError

    monkeypatch.setattr(module, "OneCycleLR", stop)
    network = module.ClassifierNetwork(1, (8, 8), 2)
    images = torch.zeros(1, 1, 8, 8, dtype=torch.uint8).expand(count, -1, -1, -1)
    with pytest.raises(StopError):
        module._run_steps(network, images, torch.zeros(count), torch.Generator())


def test_shifts_move_a_whole_batch_by_at_most_one_pixel_of_a_small_image():
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(2, 1, 8, 8)
    images[:, :, 4, 4] = 1.0
    places = {tuple(module._shift(images, generator)[0, 0].nonzero()[0].tolist()) for _ in range(200)}
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_progress_is_reported(tmp_path, short, caplog):
    with caplog.at_level(logging.INFO, logger="fedddpm"):
        load_classifier(noise(5), "noise", tmp_path, CPU)
    event = parse_line(caplog.messages[-1])
    assert (event.phase, event.step, event.steps, event.seconds_left) == ("classifier", 3, 3, 0)


def test_labels_are_needed(tmp_path):
    images = noise(5).without_labels()
    with pytest.raises(ConfigError, match=r'"classifier" needs labels.*"pixels-pca" or "efficientnet-lite0"'):
        load_classifier(images, "noise", tmp_path, CPU)
