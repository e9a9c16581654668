"""Extractors of the features that images are compared on, by the value of ``eval-extractor``."""

from pathlib import Path

import torch

from fedddpm_app.config import ConfigError
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.evaluation.extractors.base import Extractor, Features
from fedddpm_app.evaluation.extractors.classifier import Classifier, load_classifier
from fedddpm_app.evaluation.extractors.efficientnet_lite0 import EfficientNetLite0
from fedddpm_app.evaluation.extractors.inception_v3 import InceptionV3
from fedddpm_app.evaluation.extractors.pixels_pca import PixelsPca, fit_pixels_pca, load_pixels_pca
from fedddpm_app.evaluation.extractors.pretrained import Pretrained

EXTRACTORS = ("auto", "classifier", "efficientnet-lite0", "inception-v3", "pixels-pca")

__all__ = [
    "EXTRACTORS",
    "Classifier",
    "EfficientNetLite0",
    "Extractor",
    "Features",
    "InceptionV3",
    "PixelsPca",
    "Pretrained",
    "create_extractor",
    "fit_pixels_pca",
    "load_classifier",
    "load_pixels_pca",
]


def create_extractor(
    name: str,
    *,
    train: ImageTensors,
    data_digest: str,
    cache_dir: Path,
    device: torch.device,
    inception_weights: str = "",
) -> Extractor:
    """Create an extractor by its name.

    Parameters
    ----------
    name : str
        One of ``EXTRACTORS``. ``auto`` is ``inception-v3`` if its weights are given, else ``classifier`` if the
        training images have labels, else ``pixels-pca``.
    train : ImageTensors
        The real training images, to which ``classifier`` and ``pixels-pca`` are fitted.
    data_digest : str
        Identifies the training images in the cache: other images or labels have another digest.
    cache_dir : Path
        The folder for fitted weights.
    device : torch.device
        The device that the extractor runs on.
    inception_weights : str
        Path of the weights of ``inception-v3``; "" for none.

    Raises
    ------
    ConfigError
        If the extractor lacks something that it needs; the message gives the fix.
    """
    match _resolve(name, train, inception_weights):
        case "classifier":
            return load_classifier(train, data_digest, cache_dir, device)
        case "efficientnet-lite0" | "inception-v3" as pretrained:
            return Pretrained("eval-extractor", pretrained, "classifier").load(inception_weights, device)
        case "pixels-pca":
            return load_pixels_pca(train, data_digest, cache_dir, device)
        case _:
            raise ConfigError(f'eval-extractor = "{name}" is not known: use one of {", ".join(EXTRACTORS)}.')


def _resolve(name: str, train: ImageTensors, inception_weights: str) -> str:
    if name != "auto":
        return name
    if inception_weights:
        return "inception-v3"
    return "pixels-pca" if train.labels is None else "classifier"
