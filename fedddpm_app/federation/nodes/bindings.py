"""Which node a partition belongs to: the first one that answered for it, for the whole run.

Another node that claims the partition while its owner is away is a newcomer: it takes part in what carries weights that
all clients get, and is sent nothing that is the client's own. The owner gets its partition back when it returns.

A node is known by its public key, which Flower's SuperLink has checked: each request of a SuperNode is signed. With
SuperNode authentication the key is the site's, and outlives restarts of the SuperNode. Without it, a SuperNode makes a
key at each start, so that a restarted one is a newcomer; the ServerApp cannot see which of both is the case.
"""

import hashlib
from collections.abc import Mapping, Sequence

from flwr.serverapp import Grid

from fedddpm_app.config import ConfigError
from fedddpm_app.federation.ports import Recorder

PARTITIONS = "partitions.jsonl"
NOT_ITS_OWN = (
    "its partition is held by a newcomer, and belongs to another node, which alone is sent what is the client's own"
)


def identities(nodes: Sequence[int], grid: Grid) -> dict[int, str]:
    """Return the names by which nodes are known in the run: the SHA-256 of the public key, or without one the id."""
    keys = {info.node_id: info.public_key for info in grid.get_nodes()}
    return {node: _name_of(keys[node]) if keys.get(node) else f"node-{node}" for node in nodes}


def _name_of(key: bytes) -> str:
    return f"key-{hashlib.sha256(key).hexdigest()}"


class Bindings:
    """The owners of the run's partitions.

    Parameters
    ----------
    recorder : Recorder, optional
        Keeps the owners in ``partitions.jsonl``, where a resumed run finds them; without it, they are in memory only.

    Raises
    ------
    ConfigError
        When the file cannot be read.
    """

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder
        self._owners: dict[int, str] = {}
        try:
            for row in recorder.entries_of(PARTITIONS) if recorder else ():
                self._owners.setdefault(int(row["partition"]), str(row["owner"]))
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"resume: {PARTITIONS} cannot be read ({type(error).__name__}: {error}): restore it from a backup; a "
                'line is {"partition": 0, "owner": "key-..."}.'
            ) from error

    def is_owner(self, partition: int, identity: str) -> bool:
        """Return whether a partition belongs to a node."""
        return self._owners.get(partition) == identity

    def newcomers(self, node_of: Mapping[int, int], identity: Mapping[int, str]) -> set[int]:
        """Return the partitions whose node is not the one that they belong to; ``identity`` is by node."""
        return {partition for partition, node in node_of.items() if not self.is_owner(partition, identity[node])}

    def claim(self, partition: int, identity: str) -> bool:
        """Bind a partition to a node if it belongs to none; return whether it belongs to this one."""
        if partition not in self._owners:
            self._owners[partition] = identity
            if self._recorder:
                self._recorder.append_to(PARTITIONS, {"partition": partition, "owner": identity})
        return self.is_owner(partition, identity)
