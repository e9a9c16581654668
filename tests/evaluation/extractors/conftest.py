import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.evaluation.extractors import load_classifier

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def digits():
    """Training images and test images of scikit-learn's digits."""
    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    data = ImageTensors(images, torch.from_numpy(bunch.target))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data.select(order[:1437]), data.select(order[1437:])


@pytest.fixture(scope="session")
def classifier(digits, cache_dir):
    return load_classifier(digits[0], "digits", cache_dir, CPU)


@pytest.fixture
def rgb_images():
    """Five random images that are neither square nor of a usual size."""
    return torch.randint(256, (5, 3, 20, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
