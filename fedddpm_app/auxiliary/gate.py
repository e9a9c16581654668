"""The check of a client's own model before the model, or images of it, leave the client.

A generated image is a near copy if its nearest training image is abnormally near beside the next ones (Carlini et al.
2023, see ``evaluation.memorization``). Abnormal is what at most a share ``memorization-rate`` of real images is that
are not copies: the client's held-out images, and where these are few, its training images beside each other. A few near
duplicates among these would make a tiny ratio normal; so a ratio below a third of their median is abnormal in any case.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fedddpm_app.config import Config, ConfigError
from fedddpm_app.device import resolve_device
from fedddpm_app.diffusion.images import to_uint8
from fedddpm_app.evaluation.extractors import Pretrained
from fedddpm_app.evaluation.memorization import (
    Neighbours,
    among_themselves,
    as_trained,
    nearest_training,
    nearest_vectors,
    threshold_at,
    without_twins,
)
from fedddpm_app.training.declined import DeclinedError
from fedddpm_app.training.task import Task, TrainingData

KEYS = ("memorization-check", "memorization-extractor", "max-memorized-share", "min-images-to-share")
_ENOUGH = 200  # real images for a calibration
_BLOCK = 512  # images
_LEAST = 1 / 3  # of the median; of 90 or more digits, clothes or CIFAR images, 1 % are below 0.37 to 0.8 of it

Embed = Callable[[Tensor], Tensor]
Nearest = Callable[[Tensor, Tensor, int], Neighbours]


class Gate:
    """Compares images with a client's own training images.

    Parameters
    ----------
    train, held_out : Tensor
        uint8, shapes (M, C, H, W) and (N, C, H, W).
    neighbours, rate : int, float
        k of the ratio, and the share of real images that are counted as copies.
    embed : callable, optional
        Returns the features of images, float32, shape (B, d). Images are then compared in these too: a near copy in
        pixels or in features is one.
    mirrored : bool
        Whether the model was also trained on the training images' mirror images, whose copies are then near copies.

    Raises
    ------
    DeclinedError
        With fewer than 2 training images, which nothing can be compared beside.
    """

    def __init__(
        self,
        train: Tensor,
        held_out: Tensor,
        *,
        neighbours: int,
        rate: float,
        embed: Embed | None = None,
        mirrored: bool = False,
    ) -> None:
        if len(train) < 2:
            raise DeclinedError(f"{len(train)} training image is too few to find out whether its model copies it")
        seen = as_trained(train, mirrored=mirrored)
        self._pixels = _Space(nearest_training, train, seen, held_out, neighbours, rate)
        self._embed = embed
        if embed:
            self._features = _Space(nearest_vectors, embed(train), embed(seen), embed(held_out), neighbours, rate)

    def copies(self, images: Tensor) -> Tensor:
        """Return which images, uint8 (B, C, H, W), are near copies: bool, shape (B,)."""
        found = self._pixels.copies(images)
        return found | self._features.copies(self._embed(images)) if self._embed else found


class _Space:
    """Images as pixels or as features, with the threshold of the ratio there; ``seen``: with mirror images."""

    def __init__(
        self, nearest: Nearest, train: Tensor, seen: Tensor, held_out: Tensor, neighbours: int, rate: float
    ) -> None:
        self._nearest, self._seen, self._neighbours = nearest, seen, neighbours
        real = torch.empty(0)
        if len(held_out):
            real = without_twins(nearest(held_out, seen, neighbours))
        if len(real) < _ENOUGH:
            real = torch.cat([real, among_themselves(train, neighbours, _ENOUGH)])
        self.threshold = max(threshold_at(real, rate), _LEAST * float(real.median())) if len(real) else torch.inf

    def copies(self, images: Tensor) -> Tensor:
        found = self._nearest(images, self._seen, self._neighbours)
        return (found.ratio.double() < self.threshold) | (found.distance == 0)


def check_settings(config: Config) -> None:
    """Raise ``ConfigError`` if clients cannot compare images as the config wants."""
    if config.sharing.memorization_check == "always" and config.dp.pretrain.is_private:
        raise ConfigError(
            f'memorization-check = "always" reads the images without noise, but pretrain-dp-epsilon = '
            f'{config.dp.pretrain.epsilon} promises that nothing is sent that does: use memorization-check = "never".'
        )
    if wanted := _wanted(config):
        wanted.check(config.evaluation.inception_weights)


def keys_of_no_check(config: Config) -> dict[str, str]:
    """Return the keys of the check that have no effect in a run whose clients upload own models or images of them."""
    if config.checks_memorization:
        return {}
    check = config.sharing.memorization_check
    reason = f'memorization-check = "{check}"' + (", and nothing asks for it" if check == "auto" else "")
    return dict.fromkeys(("memorization-extractor", "max-memorized-share"), reason)


def open_gate(config: Config, task: Task, partition_id: int) -> Gate:
    """Return the gate of a client, with the extractor that ``memorization-extractor`` names."""
    train, held_out = (_pixels(data) for data in (task.train_data(partition_id), task.held_out_data(partition_id)))
    settings = config.evaluation
    return Gate(
        train,
        held_out,
        neighbours=settings.memorization_neighbours,
        rate=settings.memorization_rate,
        embed=_embedder(config),
        mirrored=config.data.horizontal_flip,
    )


def check_enough(config: Config, num_examples: int) -> None:
    """Raise ``DeclinedError`` for a client with fewer training images than ``min-images-to-share``."""
    least = config.sharing.min_images_to_share
    if num_examples < least:
        raise DeclinedError(f"it shares nothing: {num_examples} training images, and min-images-to-share = {least}")


def check_share(config: Config, copies: Tensor, num_examples: int) -> float:
    """Return the share of near copies among the images of a model; raise ``DeclinedError`` if it is too large."""
    share, limit = float(copies.double().mean()), config.sharing.max_memorized_share
    if share > limit and config.dp.pretrain.is_private:
        raise DeclinedError("it shares nothing: too many images of its model are near copies for this site's policy")
    if share > limit:
        raise DeclinedError(
            f"it shares nothing: {int(copies.sum())} of {len(copies)} images of its model are near copies of its "
            f"{num_examples} training images, and max-memorized-share = {limit:g}"
        )
    return share


def _pixels(data: TrainingData) -> Tensor:
    """Return all images as uint8 on the CPU; few of them are floats at a time."""
    blocks = torch.split(torch.arange(len(data), device=data.device), _BLOCK)
    return torch.cat([to_uint8(data.batch(index).images).cpu() for index in blocks])


def _embedder(config: Config) -> Embed | None:
    wanted = _wanted(config)
    if wanted is None:
        return None
    extractor = wanted.load(config.evaluation.inception_weights, resolve_device(config.run.device))
    return lambda images: extractor(images).vectors


def _wanted(config: Config) -> Pretrained | None:
    name = config.sharing.memorization_extractor
    return None if name == "none" else Pretrained("memorization-extractor", name, instead="none")
