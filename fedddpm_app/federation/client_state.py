"""What a client keeps from one round to the next, in files of its own.

Flower's ``context.state`` lives in memory and is pushed under a short time limit, so that model-sized state gets
lost there. A client's weights go to safetensors files, written atomically, in a folder of the run; ``context.state``
holds only a marker (round, file name, SHA-256), which is checked at load. The file before the last is kept until the
next round: if a client dies between writing and answering, its marker still names a file that is there.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from flwr.app import ConfigRecord, Context
from flwr.supercore.utils import get_flwr_home
from safetensors.torch import load_file, save_file

from fedddpm_app.config import Config
from fedddpm_app.weights import Weights

_MARKER = "fedddpm-client-state"
_FOLDER = "fedddpm-state"


class ClientStateError(RuntimeError):
    """A client's state is not what its marker says; the message names the file."""


class ClientState(Mapping[str, Weights]):
    """One client's state in one run: as a mapping, what was saved last, read on first use.

    Parameters
    ----------
    config : Config
        ``state_dir`` is where runs have their folders; empty for the client's Flower home.
    context : Context
        Its ``run_id`` names the folder, its ``state`` holds the marker.
    partition_id : int
        Names the files.
    """

    def __init__(self, config: Config, context: Context, partition_id: int) -> None:
        parent = Path(config.run.state_dir).expanduser() if config.run.state_dir else get_flwr_home() / _FOLDER
        self.folder = parent.resolve() / f"run-{context.run_id}"
        self._context = context
        self._prefix = f"client-{partition_id:04d}"
        self._who = f"client {partition_id}"
        self._loaded: dict[str, Weights] | None = None

    def __getitem__(self, name: str) -> Weights:
        return self._last()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._last())

    def __len__(self) -> int:
        return len(self._last())

    def _last(self) -> dict[str, Weights]:
        if self._loaded is None:
            self._loaded = self.load()
        return self._loaded

    def load(self) -> dict[str, Weights]:
        """Return what was saved last, by name; nothing before the first ``save``.

        Raises
        ------
        ClientStateError
            When the file is missing, or not the one that was written.
        """
        marker = self._context.state.config_records.get(_MARKER)
        if marker is None:
            return {}
        path, server_round = self.folder / str(marker["file"]), int(marker["round"])  # type: ignore[arg-type]
        fix = "restore the folder (state-dir) from a backup, or start a new run; the client is left out of this one"
        if not path.is_file():
            raise ClientStateError(
                f"{self._who} has lost its state of round {server_round}: {path} is not there; {fix}."
            )
        if _digest(path) != marker["sha256"]:
            raise ClientStateError(
                f"{self._who}: {path} is not the state that round {server_round} wrote: its SHA-256 differs; {fix}."
            )
        return _unflatten(load_file(path))

    def save(self, server_round: int, state: Mapping[str, Weights]) -> None:
        """Write the state of a round and mark it; files older than the last are removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self._prefix}-round-{server_round:04d}.safetensors"
        partial = path.with_suffix(f".{os.getpid()}.partial")
        save_file(_flatten(state), partial)
        partial.replace(path)
        earlier = self._context.state.config_records.get(_MARKER)
        kept = {path.name, str(earlier["file"]) if earlier else ""}
        self._context.state[_MARKER] = ConfigRecord({"round": server_round, "file": path.name, "sha256": _digest(path)})
        self._remove(kept)

    def forget(self) -> None:
        """Remove the client's files of this run, and the folder when it was the last."""
        self._context.state.pop(_MARKER, None)
        self._remove(set())
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _remove(self, kept: set[str]) -> None:
        for path in self.folder.glob(f"{self._prefix}-round-*"):
            if path.name not in kept:
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
