"""Conversion between weights and Flower records, and the keys of the app's messages."""

from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedddpm_app.federation.messages.deadlines import TIME_LIMIT
from fedddpm_app.training.privacy import DP_EPSILON, DP_EPSILON_TOTAL
from fedddpm_app.weights import Weights

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
NUM_EXAMPLES = "num-examples"
SERVER_ROUND = "server-round"
STATE_ROUND = "state-round"
STATE_RUN = "state-run"
PARTITION_ID = "partition-id"
NUM_PARTITIONS = "num-partitions"
DATA_PATH = "data-path"
PROBE = "probe"
SHARES_MEMORY = "shares-memory"
WORKER = "worker"
ACTION = "train."  # prefix of the message type of a client action
VALUES = "values"
EXCHANGE = "exchange"  # config record of a message whose reply has not all weights
RETURNED = "returned"  # the names of the weights that it has
OWN_MODEL = "own-model"  # record in a client's state: its model after its last training
SECURE_KEYS = "train.secure_keys"  # message types of secure aggregation, with what a reply has
SECURE_SHARES = "train.secure_shares"
SECURE_REVEAL = "train.secure_reveal"
KEYS, SHARES, MASKED, REVEALED = "keys", "shares", "masked", "revealed"
UNMASKED = ("steps", DP_EPSILON, DP_EPSILON_TOTAL)  # metrics that follow from the config and the number of images
SECURE = "secure"  # config record of a message that asks for a masked update
FORGET = "query.forget"
LOOK = "query.look"


class WeightsRecord(ArrayRecord):
    """Weights as a record that Flower's loop can pass on; a tensor is converted to an array on access.

    Parameters
    ----------
    weights : Weights
        The record refers to these tensors; it does not copy them.
    """

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.__dict__["weights"] = dict(weights)

    @property
    def weights(self) -> Weights:
        """The weights, without a copy."""
        kept: Weights = self.__dict__["weights"]
        return kept

    def __getitem__(self, item: str) -> Array:
        """Return one tensor as Flower's array."""
        return Array(self.weights[item].detach().cpu().numpy())

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)

    def __contains__(self, key: object) -> bool:
        return key in self.weights

    def __repr__(self) -> str:
        return f"WeightsRecord({list(self.weights)})"

    def __eq__(self, other: object) -> bool:
        return dict(self.items()) == other if isinstance(other, Mapping) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __setitem__(self, key: str, value: Array) -> None:
        self.weights[key] = torch.from_numpy(value.numpy())

    def __delitem__(self, key: str) -> None:
        del self.weights[key]

    def keys(self) -> KeysView[str]:
        """Return the names."""
        return KeysView(self)

    def values(self) -> ValuesView[Array]:
        """Return the arrays; each one is made on access."""
        return ValuesView(self)

    def items(self) -> ItemsView[str, Array]:
        """Return names and arrays."""
        return ItemsView(self)

    def copy(self) -> "WeightsRecord":
        """Return a record of the same weights."""
        return WeightsRecord(self.weights)


def to_arrays(weights: Weights) -> ArrayRecord:
    """Return weights as a Flower record."""
    return WeightsRecord(weights)


def to_weights(arrays: ArrayRecord) -> Weights:
    """Return the weights in a Flower record, on the CPU."""
    return arrays.weights if isinstance(arrays, WeightsRecord) else dict(arrays.to_torch_state_dict())


def request(
    records: Mapping[str, ArrayRecord], server_round: int, state_round: int, state_run: str, time_limit: float
) -> RecordDict:
    """Return the content of a message; ``state_round`` and ``state_run`` are as in ``ClientState``."""
    config = ConfigRecord({SERVER_ROUND: server_round, STATE_ROUND: state_round, STATE_RUN: state_run})
    config[TIME_LIMIT] = float(time_limit)
    return RecordDict({**records, CONFIG: config})
