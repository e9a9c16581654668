"""FedDiffuse: Training Diffusion Models with Federated Learning.

Matthijs de Goede, Bart Cox, Jeremie Decouchant. 2024. https://arxiv.org/abs/2406.12575.

The UNet has three parts: encoder E, bottleneck B, decoder D (``diffusion.parts``). Every client trains the whole model
in every round; the split decides which parts travel.

    full      E, B, D go down and come back: FedAvg
    usplit    E, B, D go down. The clients of a round, in random order, return D, E, D, E, ...; B comes from one of each
              pair, chosen by a coin. An odd client returns a random one of D and E, and B
    ulatdec   B, D go down and come back; E_i stays with client i
    udec      D goes down and comes back; E_i and B_i stay with client i
    Server    each part <- sum n_i part_i / sum n_i over the clients that returned it; without any it stays as it is
    First     a client gets E, B and D of the server in its first round, whatever the split

Symbols: E, B, D -> ``ENCODER``, ``BOTTLENECK``, ``DECODER``, split -> feddiffuse-split, n_i -> num_examples,
client i's own model w_i -> ``OWN_MODEL`` in its state, client_models on the server.
Cost of R rounds of one client, in parameters: P all, d those of the parts that travel. ulatdec and udec: P + (2R - 1) d
both ways, because only the first of 2R transfers is whole; usplit: P R + P R / 2 on average, for an even number of
clients.
Deviations: their encoder leaves the label embedding out; ours contains it. Their Huber loss, their optimiser (a new
Adam in each round, 1e-4) and their schedule of noise are settings of the run, not part of this class.
ulatdec and udec have no global model. Metrics are those of the clients' own models after their last training, without
the last aggregate, as in the source. For them the server collects these models as a whole when an evaluation is due;
``feddiffuse-collect-models = false`` leaves out both [our choice].
A client that takes part for the first time in a later round gets parts that nobody returned, E (udec: and B), as they
were initialised, beside the averaged other parts [our reading: the source has no late clients].
A client that was not sampled for some rounds combines its own parts with the current average of the others.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import ClassVar

import numpy as np
import torch
from flwr.serverapp import Grid
from torch import nn

from fedddpm_app.config import Config, ConfigError, DataConfig, UNetConfig
from fedddpm_app.diffusion.parts import BOTTLENECK, DECODER, ENCODER, PARTS, parts
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.federation.cost import Cost
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.federation.own_models import COLLECT, NAME, collect_own_models, own_model
from fedddpm_app.federation.rounds.exchanged import Exchanged
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
from fedddpm_app.weights import Weights

TRAVELS = {"ulatdec": frozenset({BOTTLENECK, DECODER}), "udec": frozenset({DECODER})}
_OF_OWN_MODELS = (
    *("eval-images", "eval-sampler", "eval-sampler-steps", "eval-final-images", "eval-final-sampler"),
    *("eval-final-sampler-steps", "preview-every", "preview-images", "preview-sampler", "preview-sampler-steps"),
    *("eval-extractor", "eval-reference", "eval-batch-size", "inception-weights", "memorization-neighbours"),
    "memorization-rate",
)


def _own_model(request: ActionRequest) -> ActionAnswer:
    """Return the client's own model, unless the run does not collect models."""
    if not request.config.feddiffuse.collect_models:
        raise ConfigError("feddiffuse-collect-models = false: this run's clients hand over no whole model.")
    return own_model(request)


class FedDiffuse(FederatedStrategy):
    """FedDiffuse's server half; the client half is plain local training of the whole model."""

    key_prefix = "feddiffuse-"
    client_actions: ClassVar[Mapping[str, ClientAction]] = {NAME: dataclasses.replace(COLLECT, run=_own_model)}
    own_aggregation = "each part is the mean over the clients that return it"
    state_attributes = ("_collected_round",)
    _collected_round = 0  # of client_models

    @classmethod
    def keeps_model(cls, config: Config) -> bool:
        """Return whether parts stay with the clients."""
        return config.feddiffuse.split in TRAVELS

    @classmethod
    def stays_at_clients(cls, config: Config, model: nn.Module) -> Set[str]:
        """Return the weights of the parts that do not travel."""
        travels = TRAVELS.get(config.feddiffuse.split, PARTS)
        return frozenset(name for name, part in parts(model).items() if part not in travels)

    @classmethod
    def has_global_model(cls, config: Config) -> bool:
        """Return whether all parts are averaged."""
        return config.feddiffuse.split not in TRAVELS

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the keys of a global model, if there is none, or those of the clients' models."""
        unused, split = super().keys_without_effect(config), f'feddiffuse-split = "{config.feddiffuse.split}"'
        if cls.has_global_model(config):
            return unused | {"feddiffuse-collect-models": f"{split} has a global model"}
        unused["server-ema-decay"] = f"{split} has no global model"
        if not config.feddiffuse.collect_models:
            unused |= dict.fromkeys(_OF_OWN_MODELS, "feddiffuse-collect-models = false")
        return unused

    @classmethod
    def traffic(cls, config: Config, first: float) -> Cost:
        """Return the models' worth of weights that all rounds exchange, from the parts' shares of the parameters."""
        clients = config.run.clients_per_round or config.data.num_clients
        exchanges, split = config.run.num_rounds * clients, config.feddiffuse.split
        if split == "full":
            return super().traffic(config, first)
        share = shares_of_parts(config.unet, config.data)
        if split == "usplit":
            odd = clients % 2 * ((share[ENCODER] + share[DECODER]) / 2 + share[BOTTLENECK])
            return Cost(0.0, config.run.num_rounds * (clients // 2 + odd), exchanges)
        travels = sum(share[part] for part in TRAVELS[split])
        return Cost(0.0, exchanges * travels, first + (exchanges - first) * travels)

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Check that the model has parts."""
        if self.config.feddiffuse.split != "full":
            parts(self.task.create_model())
        return weights

    @functools.cached_property
    def part_of(self) -> dict[str, str]:
        """The part of each weight, by name."""
        return parts(self.task.create_model())

    def exchanged(self, server_round: int, partitions: Sequence[int]) -> Mapping[int, Exchanged]:
        """Return the parts that travel to and from each client, by the split."""
        split = self.config.feddiffuse.split
        if split == "full":
            return {}
        if split == "usplit":
            tasks = assign_tasks(partitions, derive_seed(self.config.run.seed, "feddiffuse-tasks", server_round))
            return {partition: Exchanged(None, self._names(task)) for partition, task in tasks.items()}
        travels = self._names(TRAVELS[split])
        return {p: Exchanged(travels if self.has_model(p) else None, travels) for p in partitions}

    def aggregate(self, server_round: int, replies: Iterator[Reply]) -> Weights:
        """Average each part; the models of an earlier round are not those of the clients any more."""
        weights = super().aggregate(server_round, replies)
        self.client_models = {}
        return weights

    def evaluated(self, server_round: int) -> Mapping[int, Weights]:
        """Return the clients' own models, which are collected once in a round."""
        if self._collected_round != server_round and self.config.feddiffuse.collect_models:
            self._collected_round = server_round
            self.client_models = collect_own_models(self)
        return self.client_models

    def _names(self, chosen: frozenset[str]) -> frozenset[str]:
        """Return the names of the weights in the chosen parts."""
        return frozenset(name for name, part in self.part_of.items() if part in chosen)


def assign_tasks(partitions: Sequence[int], seed: int) -> dict[int, frozenset[str]]:
    """Return the parts that each client of a usplit round returns.

    Parameters
    ----------
    partitions : sequence of int
        The round's clients, in any order.
    seed : int
        Derived from the run's seed and the round.
    """
    generator = np.random.default_rng(seed)
    order = [int(partition) for partition in generator.permutation(sorted(partitions))]
    tasks: dict[int, set[str]] = {}
    for decoding, encoding in zip(order[::2], order[1::2], strict=False):
        tasks |= {decoding: {DECODER}, encoding: {ENCODER}}
        tasks[(decoding, encoding)[int(generator.integers(2))]].add(BOTTLENECK)
    if len(order) % 2:
        tasks[order[-1]] = {(DECODER, ENCODER)[int(generator.integers(2))], BOTTLENECK}
    return {partition: frozenset(task) for partition, task in sorted(tasks.items())}


@functools.cache
def shares_of_parts(unet: UNetConfig, data: DataConfig) -> Mapping[str, float]:
    """Return the share of each part in the model's parameters; no memory is allocated for the model."""
    with torch.device("meta"):
        model = create_unet(unet, data, seed=0)
    counts = dict.fromkeys(PARTS, 0)
    weights = model.state_dict()
    for name, part in parts(model).items():
        counts[part] += weights[name].numel()
    return {part: count / sum(counts.values()) for part, count in counts.items()}
