"""Weights in Flower records and back, and the keys of our messages."""

from collections import OrderedDict
from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from fedddpm_app.weights import Weights

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
NUM_EXAMPLES = "num-examples"
SERVER_ROUND = "server-round"
STATE_ROUND = "state-round"
PARTITION_ID = "partition-id"
NUM_PARTITIONS = "num-partitions"
LABEL_COUNTS = "label-counts"
PRETRAIN = "train.pretrain"
FORGET = "query.forget"
DRAW = "query.draw"
SEEDS = "seeds"
LABELS = "labels"
BATCH_SIZE = "batch-size"
IMAGES = "images"


def to_arrays(weights: Weights) -> ArrayRecord:
    """Pack weights into an ArrayRecord, names kept."""
    return ArrayRecord(torch_state_dict=OrderedDict(weights))


def to_weights(arrays: ArrayRecord) -> Weights:
    """Unpack an ArrayRecord into weights on the CPU."""
    return dict(arrays.to_torch_state_dict())


def request(records: Mapping[str, ArrayRecord], server_round: int, state_round: int) -> RecordDict:
    """Return the content of a training or evaluation message; ``state_round`` as for ``ClientState``."""
    return RecordDict({**records, CONFIG: ConfigRecord({SERVER_ROUND: server_round, STATE_ROUND: state_round})})


def payload_bytes(arrays: ArrayRecord) -> int:
    """Return the bytes of the arrays on the wire."""
    return sum(len(array.data) for array in arrays.values())
