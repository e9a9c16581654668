"""The check for noise: the structured share of generated images, and the note."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d

from fedddpm_app.diffusion.images import to_uint8
from fedddpm_app.evaluation.noise import PixelCorrelation, noise_note, structure_share


def smooth(count, channels, size, generator):
    """Images whose neighbouring pixels are alike, of variance 1."""
    images = avg_pool2d(torch.randn(count, channels, size + 3, size + 3, generator=generator), 4, 1)
    return images / images.std()


def correlation(images):
    pixels = PixelCorrelation()
    pixels.add(to_uint8(images.mul(0.2)))
    return pixels


def centred(images):
    """The variance of the pixels of images without their own means."""
    return float((images - images.mean((2, 3), keepdim=True)).square().mean())


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 3]), st.sampled_from([8, 32, 48]), st.floats(0, 1), st.floats(0.2, 1), st.integers(0, 999))
def test_the_share_is_the_signals_share_of_the_variance(channels, size, signal, contrast, seed):
    generator = torch.Generator().manual_seed(seed)
    count = 200 * max(1, (32 // size) ** 2)  # small images have few independent pixels, so more of them are needed
    real, own = (smooth(count, channels, size, generator) for _ in range(2))
    noise = torch.randn(own.shape, generator=generator)
    mixed = correlation(contrast * (math.sqrt(signal) * own + math.sqrt(1 - signal) * noise))
    share = structure_share(mixed, correlation(real))
    structured, random = (weight * centred(x) for weight, x in ((signal, own), (1 - signal, noise)))
    assert share == pytest.approx(structured / (structured + random), abs=0.04)
    assert bool(noise_note(mixed, correlation(real))) == (share < 0.5) or abs(share - 0.5) < 0.07


def test_batches_and_one_stream_are_the_same():
    images = to_uint8(smooth(50, 3, 16, torch.Generator().manual_seed(0)))
    one, many = PixelCorrelation(), PixelCorrelation()
    one.add(images)
    for batch in images.split(7):
        many.add(batch)
    assert torch.allclose(one.values, many.values)


@pytest.mark.parametrize("shape", [(50, 1, 32, 32), (50, 3, 8, 8), (9, 1, 1, 1), (9, 1, 2, 2)])
def test_noise_like_data_and_flat_images_have_no_note(shape):
    generator = torch.Generator().manual_seed(1)
    texture, generated = (correlation(torch.randn(shape, generator=generator)) for _ in range(2))
    assert noise_note(generated, texture) == ""
    flat = correlation(torch.zeros(20, 1, 8, 8))
    assert noise_note(flat, correlation(smooth(50, 1, 8, generator))) == ""


def test_a_checkerboard_is_structure():
    board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).mul(2.0).sub(1).expand(20, 1, 16, 16)
    assert structure_share(correlation(board), correlation(board)) == pytest.approx(1)
    noise = correlation(torch.randn(20, 1, 16, 16, generator=torch.Generator().manual_seed(2)))
    assert "still noise" in noise_note(noise, correlation(board))


def test_a_few_images_are_not_called_noise_by_chance():
    generator = torch.Generator().manual_seed(3)
    real = correlation(smooth(200, 1, 8, generator))
    assert not any(noise_note(correlation(smooth(2, 1, 8, generator)), real) for _ in range(200))
