"""What the server has asked of a client in a run, in a file: what a client does once, it does not do again.

``context.state`` cannot tell: Flower gives two messages that arrive together the same state, and the one that ends last
brings its own back. The file is locked while it is read and changed, and a restart of the SuperNode leaves it.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from filelock import FileLock
from flwr.app import Context

from fedddpm_app.client.state import state_folder
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.disk.durable import replacing
from fedddpm_app.disk.private import private_folder
from fedddpm_app.training.declined import DeclinedError

_ACCOUNT, _TRAININGS, _SECURE, _START = "account", "trainings", "secure", "own-model-start"


class RunRecord:
    """One client's record of one Flower run, ``asked/run-<id>-client-<partition>.json`` in the state folder.

    Parameters
    ----------
    config : Config
        Names the state folder.
    context : Context
        Names the run. It is Flower's id, not one that a message names.
    partition : int
        The client's partition.
    """

    def __init__(self, config: Config, context: Context, partition: int) -> None:
        self._path = state_folder(config) / "asked" / f"run-{int(context.run_id)}-client-{partition:04d}.json"

    def check_account(self, run: str) -> None:
        """Raise ``DeclinedError`` if the client's account of privacy was another one before in this run."""
        with self._changing() as known:
            first = known.setdefault(_ACCOUNT, run)
        if first != run:
            raise DeclinedError("the server names another run than before, in which the client has spent no privacy")

    @property
    def is_masked(self) -> bool:
        """Whether the client has taken part in a secure sum of the run; without a file, it has not."""
        if not self._path.exists():
            return False
        with self._changing() as known:
            return _SECURE in known

    def has_started_from(self, weights: str) -> bool:
        """Return whether these are the weights, by digest, that the client's own model was first to start from."""
        with self._changing() as known:
            first: str = known.setdefault(_START, weights)
        return first == weights

    def count_training(self, kind: str, most: int) -> None:
        """Count a training, by the type of its message; raise ``DeclinedError`` after ``most`` of them."""
        with self._changing() as known:
            counts = known.setdefault(_TRAININGS, {})
            counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] > most:
            raise DeclinedError(
                f"this site was asked for {counts[kind]} trainings in this run: site-max-rounds = {most}"
            )

    @contextlib.contextmanager
    def secure_steps(self) -> Iterator[dict[str, Any]]:
        """Yield what is known of the client's secure sum, to be read and changed."""
        with self._changing() as known:
            yield known.setdefault(_SECURE, {})

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """Yield the content of the file, and write it if it was changed."""
        private_folder(self._path.parent)
        with FileLock(self._path.with_suffix(".lock"), mode=0o600):
            before = self._path.read_text(encoding="utf-8") if self._path.exists() else "{}"
            try:
                known: dict[str, Any] = json.loads(before)
            except ValueError as error:
                raise ConfigError(
                    f"{self._path} is not JSON: restore it from a backup, or leave the client out of the run.",
                    public="its record of the run is damaged: the log of its SuperNode names the file",
                ) from error
            yield known
            after = json.dumps(known)
            if after != before:
                with replacing(self._path) as work:
                    work.write_text(after, encoding="utf-8")
