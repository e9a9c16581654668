"""The offline default: a small network trained to classify the real training images.

It also learns to detect images that belong to no class: otherwise noise lies among the features of some class, and
would score better than a blurred image (outlier exposure, Hendrycks et al. 2019, arXiv 1812.04606). This affects only
the features; predictions are always one of the real classes.

Distances on the features of a network that is trained on the data itself replace FID for images that are unlike
ImageNet's, as the LeNet of Binkowski et al. 2018 (arXiv 1801.01401, section 5) does for MNIST. They compare runs on the
same data set; they are not comparable with published FIDs.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import OneCycleLR

from fedddpm_app.config import ConfigError
from fedddpm_app.diffusion.images import ImageTensors, to_unit_range
from fedddpm_app.evaluation.extractors.base import Features, extract, features_digest, resize
from fedddpm_app.evaluation.extractors.cache import load_or_create
from fedddpm_app.progress import StepReporter, reporter
from fedddpm_app.seeding import derive_seed, split_seed
from fedddpm_app.weights import Weights, load_into, snapshot

VERSION = 2  # increased with every change in this file that affects the weights
TRAINING_SEED = 0  # the same for every run, so that runs are comparable
NUM_FEATURES = 64
_SIDES = (8, 32)  # pixels, least and most, of the network's input
_BATCH_SIZE = 128
_OUTLIERS = 32  # generated outliers, in addition to the real images of a batch
_EPOCHS = 5
_STEPS = (200, 2000)  # least and most
_LEARNING_RATE = 0.01


class ClassifierNetwork(nn.Module):
    """Four blocks of convolution, batch normalisation and ReLU; global pooling; a linear head.

    Parameters
    ----------
    channels : int
        Of the images.
    size : tuple of int
        Height and width of the images in pixels; the network's input has sides of 8 to 32.
    num_classes : int
        Number of real classes; the head has one more output, for images that belong to no class.
    """

    def __init__(self, channels: int, size: tuple[int, int], num_classes: int) -> None:
        super().__init__()
        self.input_size = _input_size(size)
        self.body = nn.Sequential(
            *_block(channels, 32, stride=2 if min(self.input_size) > 16 else 1),
            *_block(32, 64),
            nn.MaxPool2d(2),
            *_block(64, 64),
            nn.MaxPool2d(2),
            *_block(64, NUM_FEATURES),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.num_classes = num_classes
        self.head = nn.Linear(NUM_FEATURES, num_classes + 1)
        self.body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images, float32 in [-1, 1] of ``input_size``, to features (B, 64) and logits (B, classes + 1)."""
        vectors = self.body(images)
        return vectors, self.head(vectors)


def _input_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the network's input for images of a size."""
    least, most = _SIDES
    height, width = (max(least, min(side, most)) for side in size)
    return height, width


def classifier_digest(weights: Weights, size: tuple[int, int]) -> str:
    """Return the digest of the classifier with the network's weights, for images of ``size``, (height, width)."""
    return features_digest(weights, Classifier.name, VERSION, _input_size(size))


def _block(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]


class Classifier:
    """An ``Extractor`` whose features are the network's second-to-last layer; its logits predict labels.

    Parameters
    ----------
    network : ClassifierNetwork
        Trained; it is moved to ``device``.
    device : torch.device
        The device that classifies the images.
    """

    name = "classifier"
    num_features = NUM_FEATURES

    def __init__(self, network: ClassifierNetwork, device: torch.device) -> None:
        self.digest = classifier_digest(network.state_dict(), network.input_size)
        self._network = network.to(device).eval()
        self.device = device

    def __call__(self, images: Tensor) -> Features:
        """Return the features of ``images`` (uint8, shape (N, C, H, W), C as in training, any N and size)."""
        return extract(self._forward, images, self.device, (NUM_FEATURES, self._network.num_classes))

    def _forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        vectors, logits = self._network(resize(to_unit_range(images), self._network.input_size))
        return vectors, logits[:, : self._network.num_classes]


def load_classifier(train: ImageTensors, data_digest: str, cache_dir: Path, device: torch.device) -> Classifier:
    """Load the classifier of a data set; the first call trains it, within minutes on one CPU core.

    Parameters
    ----------
    train : ImageTensors
        The real training images, at least one, with labels in [0, classes).
    data_digest : str
        Identifies the data in a file name: other images or labels have another digest.
    cache_dir : Path
        The folder for the weights, with one file per data set and version.
    device : torch.device
        The device that the classifier runs on. Its training uses one CPU thread, so that the weights are the same
        on processors of one kind. On others the last bits differ.

    Raises
    ------
    ConfigError
        If ``train`` has no labels.
    """
    if train.labels is None:
        raise ConfigError(
            'eval-extractor = "classifier" needs labels, which the data set lacks: '
            'use eval-extractor = "pixels-pca" or "efficientnet-lite0".'
        )
    _, channels, height, width = train.images.shape
    seed, batch_seed = split_seed(derive_seed(TRAINING_SEED, "classifier"), 2)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = ClassifierNetwork(channels, (height, width), int(train.labels.max()) + 1)
    path = cache_dir / f"classifier-v{VERSION}-{data_digest}-{channels}x{height}x{width}.safetensors"
    images, labels = train.images, train.labels
    load_into(network, load_or_create(path, lambda: _train(network, images.cpu(), labels.cpu(), batch_seed)))
    return Classifier(network, device)


def _train(network: ClassifierNetwork, images: Tensor, labels: Tensor, seed: int) -> Weights:
    """Train on one CPU thread, because sums depend on the number of threads, and return the weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _run_steps(network, images, labels, torch.Generator().manual_seed(seed))
    finally:
        torch.set_num_threads(threads)
    return snapshot(network)


@torch.enable_grad()
def _run_steps(network: ClassifierNetwork, images: Tensor, labels: Tensor, generator: torch.Generator) -> None:
    least, most = _STEPS
    steps = max(least, min(_EPOCHS * len(images) // _BATCH_SIZE, most))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.02)
    schedule = OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.2)
    progress, losses = StepReporter(steps, reporter("classifier")), torch.zeros(steps)
    none = torch.full((_OUTLIERS,), network.num_classes)
    network.train()
    for step in range(steps):
        index = torch.randint(len(images), (_BATCH_SIZE,), generator=generator)
        batch = _shift(resize(to_unit_range(images[index]), network.input_size), generator)
        _, logits = network(torch.cat([batch, _outliers(batch[:_OUTLIERS], generator)]))
        loss = functional.cross_entropy(logits, torch.cat([labels[index], none]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        losses[step] = loss.detach()
        progress.after_step(step + 1, losses)


def _outliers(images: Tensor, generator: torch.Generator) -> Tensor:
    """Make images of no class from a batch: noise, shuffled pixels, images in noise, blank images, a quarter each."""
    shape = (len(images), 1, 1, 1)
    noise = torch.rand(images.shape, generator=generator) * 2 - 1
    share = 0.4 + 0.5 * torch.rand(shape, generator=generator)
    order = torch.randperm(images[0].numel(), generator=generator)
    blank = (torch.rand(shape, generator=generator) * 2 - 1).expand_as(images)
    shuffled = images.flatten(1)[:, order].view_as(images)
    kinds = torch.stack([noise, shuffled, images.lerp(noise, share), blank])
    kind = torch.randint(len(kinds), (len(images),), generator=generator)
    return kinds[kind, torch.arange(len(images))]


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift a batch by up to one pixel, or two pixels for images larger than 16, with repeated edges."""
    height, width = images.shape[-2:]
    most = 2 if min(height, width) > 16 else 1
    top, left = torch.randint(2 * most + 1, (2,), generator=generator).tolist()
    padded = functional.pad(images, (most, most, most, most), mode="replicate")
    return padded[:, :, top : top + height, left : left + width].contiguous()
