"""What a client keeps from one round to the next, in files of its own.

Flower's ``context.state`` lives in memory and is pushed under a short time limit, so that model-sized state gets
lost there. A client's weights go to safetensors files, written atomically, in a folder of the run; ``context.state``
holds only a marker (the SHA-256 of each round's file), which is checked at load. A node that was restarted has lost
the marker: then the file's name, which holds the SHA-256 too, stands for it.

The server tells which round's reply it accepted last, and that round's state is what the client goes on from: a
reply that was refused or lost leaves both sides as they were. So the state before the last is kept as well.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from flwr.app import ConfigRecord, Context
from safetensors.torch import load_file, save_file

from fedddpm_app.config import Config
from fedddpm_app.federation.flower_internals import get_flwr_home
from fedddpm_app.weights import Weights

_MARKER = "fedddpm-client-state"
_FOLDER = "fedddpm-state"


class ClientStateError(RuntimeError):
    """A client's state is not what its marker says; the message names the file."""


class ClientState(Mapping[str, Weights]):
    """One client's state in one run: as a mapping, what it kept of ``state_round``, read on first use.

    Parameters
    ----------
    config : Config
        ``state_dir`` is where runs have their folders; empty for the client's Flower home.
    context : Context
        Its ``run_id`` names the folder, its ``state`` holds the marker.
    partition_id : int
        Names the files.
    state_round : int
        The round of the last reply that the server accepted; 0 if there is none, and so no state.
    """

    def __init__(self, config: Config, context: Context, partition_id: int, state_round: int = 0) -> None:
        parent = Path(config.run.state_dir).expanduser() if config.run.state_dir else get_flwr_home() / _FOLDER
        self.folder = parent.resolve() / f"run-{context.run_id}"
        self._context = context
        self._prefix = f"client-{partition_id:04d}"
        self._round = state_round
        self._loaded: dict[str, Weights] | None = None

    def __getitem__(self, name: str) -> Weights:
        return self._records()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records())

    def __len__(self) -> int:
        return len(self._records())

    def load(self) -> dict[str, Weights]:
        """Read the state of ``state_round``.

        Raises
        ------
        ClientStateError
            When its file is missing, or is not the one that was written.
        """
        if self._round == 0:
            return {}
        what = f"its state of round {self._round}"
        fix = "restore the folder (state-dir) from a backup, or start a new run; this run goes on without the client"
        digest = self._digests().get(str(self._round)) or self._digest_by_name()
        path = self._path(self._round, digest)
        if not path.is_file():
            raise ClientStateError(f"{what} is lost: {path} is not there; {fix}.")
        if _digest(path) != digest:
            raise ClientStateError(f"{what} has changed: {path} has another SHA-256 than was written; {fix}.")
        return _unflatten(load_file(path))

    def save(self, server_round: int, state: Mapping[str, Weights]) -> None:
        """Write the state of a round and mark it; it and that of ``state_round`` are kept, older ones removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f"{self._prefix}.{os.getpid()}.partial"
        save_file(_flatten(state), partial)
        before = self._digests().get(str(self._round)) or self._digest_by_name()
        kept = ({str(self._round): before} if self._round else {}) | {str(server_round): _digest(partial)}
        partial.replace(self._path(server_round, kept[str(server_round)]))
        self._context.state[_MARKER] = ConfigRecord(dict(kept))
        self._remove_all_but({self._path(int(key), digest) for key, digest in kept.items()})

    def forget(self) -> None:
        """Remove the client's files of this run, and the folder when it was the last."""
        self._context.state.pop(_MARKER, None)
        self._remove_all_but(set())
        with contextlib.suppress(OSError):  # other clients of this host may still have files in it
            self.folder.rmdir()

    def _records(self) -> dict[str, Weights]:
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded

    def _digests(self) -> dict[str, str]:
        """Return the SHA-256 of each marked round's file."""
        marker = self._context.state.config_records.get(_MARKER)
        return {} if marker is None else {key: str(value) for key, value in marker.items()}

    def _digest_by_name(self) -> str:
        """Return the SHA-256 in the name of the file of ``state_round``; ``unknown`` where there is none."""
        names = sorted(path.stem for path in self.folder.glob(self._path(self._round, "*").name))
        return names[0].rsplit("-", 1)[1] if names else "unknown"

    def _path(self, server_round: int, digest: str) -> Path:
        return self.folder / f"{self._prefix}-round-{server_round:04d}-{digest}.safetensors"

    def _remove_all_but(self, kept: set[Path]) -> None:
        for path in self.folder.glob(f"{self._prefix}-round-*"):
            if path not in kept:
                path.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flatten(state: Mapping[str, Weights]) -> Weights:
    return {f"{record}/{name}": tensor for record, weights in state.items() for name, tensor in weights.items()}


def _unflatten(flat: Weights) -> dict[str, Weights]:
    state: dict[str, Weights] = {}
    for key, tensor in flat.items():
        record, name = key.split("/", 1)
        state.setdefault(record, {})[name] = tensor
    return state
