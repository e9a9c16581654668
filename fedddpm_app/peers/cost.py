"""The expected cost of a run of peers."""

from collections.abc import Sequence

from fedddpm_app.config import Config
from fedddpm_app.diffusion.unet import images_as_models
from fedddpm_app.federation.cost import Cost, images_of_generation, of_images
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.federation.strategy import FederatedStrategy


def cost_of_peers(config: Config, sizes: Sequence[int]) -> Cost:
    """Return the cost of all trainings and samples, and of sending each submission's samples to all for their votes.

    A busy peer does not get the samples of submissions that are replaced before its turn: fewer are then sent.
    """
    trainers = sizes[: len(sizes) - config.pdfed.validators]
    steps_for, batch_size = config.training.steps_for, config.training.batch_size
    images = sum(steps_for(size) * (batch_size or size) for size in trainers)
    rounds, submissions = config.run.num_rounds, config.run.num_rounds * len(trainers)
    share = images_as_models(config.unet, config.data, config.pdfed.samples)
    traffic = Cost(0.0, submissions * (1 + share), submissions * (1 + len(sizes) * share))
    return of_images(config, rounds * images + submissions * images_of_samples(config)) + traffic


def steps_of(strategy: FederatedStrategy, peer: int) -> int:
    """Return a peer's steps per training; without its data, from its number of images as far as it is known."""
    if strategy.task.client_sizes() is not None:
        return strategy.task.local_steps(peer)
    sizes = strategy.clients.admission.sizes
    return strategy.config.training.steps_for(sizes.get(peer, max(sizes.values(), default=1)))


def most_steps(strategy: FederatedStrategy, reply: Reply) -> int:
    """Return the most steps that a client's training can have; with dedup it trains on fewer images than it has."""
    known = strategy.clients.admission.sizes.get(reply.partition_id, 0)
    return strategy.config.training.steps_for(max(reply.num_examples, known))


def images_of_samples(config: Config) -> float:
    """Return the compute of a submission's samples, in training images."""
    return images_of_generation(config.pdfed.samples, config.auxiliary.sampler_steps)
