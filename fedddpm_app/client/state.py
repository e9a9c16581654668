"""A client's state between rounds, in separate files.

Flower keeps ``context.state`` in memory and pushes it under a short time limit, so that model-sized state can get
lost there. A client's weights therefore go to safetensors files, which are written atomically, in a folder of the
run. ``context.state`` holds only a marker (the SHA-256 of each round's file), which is checked at loading. A
restarted node has lost the marker; then the SHA-256 in the file's name replaces it.

The server names the round of the last reply that it accepted, and the client continues from that round's state. A
refused or lost reply therefore changes nothing on either side. For this reason the client keeps the state of the last
accepted round beside the newest one, and earlier ones for a run that is resumed from an earlier checkpoint.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from flwr.app import ConfigRecord, Context
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fedddpm_app.config import Config
from fedddpm_app.disk.durable import digest_of, publish, unfinished
from fedddpm_app.disk.private import check_owner, private_folder
from fedddpm_app.federation.flower_internals import get_flwr_home
from fedddpm_app.weights import Weights

_MARKER = "fedddpm-client-state"
_FOLDER = "fedddpm-state"
_SETTINGS = "settings"  # in a file's metadata: no run with other settings, which may send more, reads or removes it


class ClientStateError(RuntimeError):
    """A client's state does not match its marker; the message names the file."""


class ClientState(Mapping[str, Weights]):
    """One client's state in one run: a mapping of the records of ``state_round``, which is read on first use.

    Parameters
    ----------
    config : Config
        ``state_dir`` is the parent folder of the runs' folders; if empty, it is in the client's Flower home.
    context : Context
        Its ``state`` holds the marker.
    run_id : str
        Names the folder: of a resumed run, the id of the first one; a whole number.
    partition_id : int
        Names the files.
    state_round : int
        The round of the last reply that the server accepted; 0 if there is no such round, and then no state.
    """

    def __init__(self, config: Config, context: Context, run_id: str, partition_id: int, state_round: int = 0) -> None:
        self.folder = state_folder(config) / f"run-{int(run_id)}"
        self._recording = config.recording
        self._settings = hashlib.sha256(config.about_training.encode()).hexdigest()
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
            When its file is missing, has changed, is not a state, or is that of a run with other settings.
        OwnerError
            When its folder belongs to another user.
        """
        if self._round == 0:
            return {}
        for folder in (self.folder.parent, self.folder):
            check_owner(folder)
        state = f"its state of round {self._round}"
        fix = "restore the folder (state-dir) from a backup, or start a new run; this run continues without the client"
        digest = self._digests().get(str(self._round)) or self._digest_by_name()
        path = self._path(self._round, digest)
        if not path.is_file():
            raise ClientStateError(f'{state} is lost: "{path}" does not exist; {fix}.')
        if digest_of(path) != digest:
            raise ClientStateError(
                f'{state} has changed: "{path}" has another SHA-256 than when it was written; {fix}.'
            )
        try:
            settings, flat = _settings_of(path), load_file(path)
        except (OSError, ValueError, SafetensorError) as error:
            raise ClientStateError(f'{state} cannot be read: "{path}": {error}; {fix}.') from error
        if settings != self._settings:
            raise ClientStateError(f'{state} is that of a run with other settings: "{path}"; start a new run.')
        return _unflatten(flat)

    def save(self, server_round: int, state: Mapping[str, Weights]) -> None:
        """Write and mark the state of a round; keep it and the state of ``state_round``.

        Earlier states to which a checkpoint of the server may return are kept too. Other states are removed.
        """
        check_owner(self.folder.parent)
        private_folder(self.folder)
        before = self._digests().get(str(self._round)) or self._digest_by_name()
        with unfinished(self.folder / self._prefix) as work:
            save_file(_flatten(state), work, {_SETTINGS: self._settings})
            kept = ({str(self._round): before} if self._round else {}) | {str(server_round): digest_of(work)}
            publish(work, self._path(server_round, kept[str(server_round)]))
        self._context.state[_MARKER] = ConfigRecord(dict(kept))
        self._remove_all_but(
            {self._path(int(key), digest) for key, digest in kept.items()} | self._earlier(server_round)
        )

    def forget(self) -> None:
        """Remove the client's files of this run, and then the folder if it is empty.

        Files of a run with other settings stay, and those that cannot be read: a message may name any run.
        """
        self._context.state.pop(_MARKER, None)
        self._remove_all_but(set())
        with contextlib.suppress(OSError):  # other clients on this host may still have files in it
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
        """Return the SHA-256 in the file name of ``state_round``; ``unknown`` without such a file."""
        names = sorted(path.stem for path in self.folder.glob(self._path(self._round, "*").name))
        return names[0].rsplit("-", 1)[1] if names else "unknown"

    def _path(self, server_round: int, digest: str) -> Path:
        return self.folder / f"{self._prefix}-round-{server_round:04d}-{digest}.safetensors"

    def _earlier(self, server_round: int) -> set[Path]:
        """Return the states of earlier rounds that a checkpoint of the server may name.

        They are the newest ones, one more than the server keeps checkpoints, and those of its last two permanent
        checkpoints.
        """
        files = self.folder.glob(f"{self._prefix}-round-*")
        before = sorted((p for p in files if _round_of(p) < server_round), key=_round_of, reverse=True)
        kept = set(before[: self._recording.checkpoint_keep + 1])
        if every := self._recording.checkpoint_every:
            last = (server_round - 1) // every * every
            for permanent in (last, last - every):
                kept |= {*[path for path in before if _round_of(path) <= permanent][:1]}
        return kept

    def _remove_all_but(self, kept: set[Path]) -> None:
        for path in self.folder.glob(f"{self._prefix}-round-*"):
            if path in kept:
                continue
            with contextlib.suppress(OSError, ValueError, SafetensorError):
                if _settings_of(path) == self._settings:
                    path.unlink(missing_ok=True)


def state_folder(config: Config) -> Path:
    """Return the parent folder of the runs' folders: ``state-dir``, or the default one."""
    return parent_folder(config.run.state_dir)


def parent_folder(state_dir: str) -> Path:
    """Return the parent folder of the runs' folders for a ``state-dir``, which may be empty."""
    parent = Path(state_dir).expanduser() if state_dir else default_folder()
    return parent.resolve()


def default_folder() -> Path:
    """Return the parent folder of the runs' folders without a ``state-dir``."""
    return get_flwr_home() / _FOLDER


def _settings_of(path: Path) -> str | None:
    """Return the digest of the settings of the run that wrote a state."""
    with safe_open(path, framework="pt") as file:
        return (file.metadata() or {}).get(_SETTINGS)


def _round_of(path: Path) -> int:
    return int(path.stem.rsplit("-", 2)[1])


def _flatten(state: Mapping[str, Weights]) -> Weights:
    return {f"{record}/{name}": tensor for record, weights in state.items() for name, tensor in weights.items()}


def _unflatten(flat: Weights) -> dict[str, Weights]:
    state: dict[str, Weights] = {}
    for key, tensor in flat.items():
        record, name = key.split("/", 1)
        state.setdefault(record, {})[name] = tensor
    return state
