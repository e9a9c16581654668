"""The expected cost of a complete run, by which runs of different algorithms are matched.

Compute is counted in training images: an image that goes through the model forward and backward counts 1, an image
that only goes forward counts 1/3, because a backward pass costs about two forward passes. In a private training an
image counts once for each draw of ``dp-noise-multiplicity``. Evaluation is not counted; nor are the models that travel
for it, or for a generation on nodes.
"""

from dataclasses import dataclass

from fedddpm_app.config import Config

FORWARD = 1.0 / 3.0  # the cost of a forward pass, in training images


@dataclass(frozen=True)
class Cost:
    """The cost of a run, or of a part of it.

    Attributes
    ----------
    steps : float
        Compute in gradient steps of ``batch-size`` images (of one image if ``batch-size`` is 0).
    models_up, models_down : float
        Models' worth of weights from and to the clients.
    """

    steps: float = 0.0
    models_up: float = 0.0
    models_down: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of both parts."""
        return Cost(self.steps + other.steps, self.models_up + other.models_up, self.models_down + other.models_down)


def images_per_step(config: Config) -> int:
    """Return the images of the gradient step in which compute is reported."""
    return config.training.batch_size or 1


def images_of_generation(count: int, steps: int) -> float:
    """Return the compute of ``count`` generated images with ``steps`` sampling steps, in training images."""
    return count * steps * FORWARD


def of_images(config: Config, images: float) -> Cost:
    """Return the cost of training images; see the module's text for images that only go forward."""
    return Cost(steps=images / images_per_step(config))
