"""Checkpoints of a run: all that its server needs to continue after a phase or a round.

``checkpoints/round-0005/`` holds ``model.safetensors`` (the raw global weights), ``ema.safetensors``, other models by
name, ``state.json`` with ``state.safetensors`` (the rest of the server's state), and ``manifest.json`` with the SHA-256
of each of these files. Round 0 is the end of the phases before the rounds. A folder with its final name is complete: it
is written under another name, flushed to the disk, and then renamed.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedddpm_app.config import shown
from fedddpm_app.disk.bounded import check_tensors, read_object
from fedddpm_app.disk.durable import digest_of, flush_all, publish
from fedddpm_app.progress import logger
from fedddpm_app.recording.files import writing
from fedddpm_app.recording.layout import CHECKPOINTS
from fedddpm_app.recording.trees import join, split
from fedddpm_app.weights import Weights

_MANIFEST, _STATE, _TENSORS = "manifest.json", "state.json", "state.safetensors"
_NAME = re.compile(r"([\w-]{1,100}/)?[\w-]{1,100}\.(safetensors|json)")
_ROUND = re.compile(r"round-(\d{4,9})")
_FORMAT = 6
_PARTIAL = "partial-"


class CheckpointError(ValueError):
    """A checkpoint that is damaged; the message gives the file and the reason."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint, read from the disk.

    Attributes
    ----------
    server_round : int
        The last finished round; 0 before round 1.
    models : dict of str to Weights
        ``model``, ``ema``, and other models by name.
    state : dict
        The state of the strategy.
    run : dict
        The state of the recorder: run config, lines of ``stats.jsonl``, seconds.
    """

    server_round: int
    models: dict[str, Weights]
    state: dict[str, Any]
    run: dict[str, Any]


class CheckpointWriter:
    """Writes the checkpoints of a run in the background, one after the other.

    A checkpoint that cannot be written gives a warning, and the run continues: the earlier checkpoints stay.

    Parameters
    ----------
    directory : Path
        The run directory.
    """

    def __init__(self, directory: Path) -> None:
        self.folder = directory / CHECKPOINTS
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None
        self._error: Exception | None = None

    def save(
        self,
        server_round: int,
        models: Mapping[str, Weights],
        state: Mapping[str, object],
        run: Mapping[str, object],
        newest: int,
        is_permanent: Callable[[int], bool],
    ) -> None:
        """Start to write a checkpoint, after the previous one is complete.

        ``models`` must not change afterwards; ``state`` may. After the checkpoint is complete, others are removed,
        except the ``newest`` ones and those of rounds for which ``is_permanent`` returns True.
        """
        self.wait()
        content, tensors = split({"format": _FORMAT, "server_round": server_round, "state": state, "run": run})
        files = {name: dict(weights) for name, weights in models.items()}
        self._pending = self._pool.submit(self._write, server_round, files, content, tensors, newest, is_permanent)

    def wait(self) -> bool:
        """Wait until the last checkpoint is complete, or has failed; return whether it is complete."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
        return self._error is None

    def check(self) -> None:
        """Wait for the last checkpoint; raise its error, mostly a ``RecordingError``, if it could not be written."""
        self.wait()
        if self._error is not None:
            raise self._error

    def _write(
        self,
        server_round: int,
        models: dict[str, Weights],
        content: object,
        tensors: dict[str, Tensor],
        newest: int,
        is_permanent: Callable[[int], bool],
    ) -> None:
        work = self.folder / f"{_PARTIAL}{_name(server_round)}"
        final = self.folder / _name(server_round)
        self._error = None
        try:
            with writing(final):
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
                _write_files(work, models, content, tensors)
                flush_all(work)
                _remove(final)  # of a run that was resumed from an earlier checkpoint
                publish(work, final)
        except Exception as error:  # noqa: BLE001 - it is raised by ``check``, if no later checkpoint is written
            shutil.rmtree(work, ignore_errors=True)
            logger.warning("the checkpoint of round %d is missing, and the run continues: %s", server_round, error)
            self._error = error
        else:
            remove_checkpoints(self.folder.parent, is_permanent, newest)


def _write_files(folder: Path, models: dict[str, Weights], content: object, tensors: dict[str, Tensor]) -> None:
    """Write the files of a checkpoint, and their digests last."""
    names = []
    for name, weights in models.items():
        path = folder / f"{name}.safetensors"
        path.parent.mkdir(exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
        names.append(f"{name}.safetensors")
    (folder / _STATE).write_text(json.dumps(content), encoding="utf-8")
    names.append(_STATE)
    if tensors:
        save_file(tensors, folder / _TENSORS)
        names.append(_TENSORS)
    digests = {name: digest_of(folder / name) for name in names}
    (folder / _MANIFEST).write_text(json.dumps(digests, indent=2), encoding="utf-8")


def rounds_of(directory: Path) -> list[int]:
    """Return the rounds of a run's checkpoints in ascending order; they may be damaged."""
    names = (_ROUND.fullmatch(path.name) for path in (directory / CHECKPOINTS).glob("round-*"))
    return sorted(int(found[1]) for found in names if found)


def remove_checkpoints(directory: Path, is_kept: Callable[[int], bool], newest: int = 0) -> None:
    """Remove unfinished checkpoints, and all except the ``newest`` ones and those for which ``is_kept`` returns True.

    A checkpoint that cannot be removed stays, with a warning.
    """
    rounds = rounds_of(directory)
    for server_round in rounds[: len(rounds) - newest]:
        if not is_kept(server_round):
            try:
                _remove(directory / CHECKPOINTS / _name(server_round))
            except OSError as error:
                logger.warning("the checkpoint of round %d cannot be removed: %s", server_round, error)
    for path in (directory / CHECKPOINTS).glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(folder: Path) -> None:
    """Remove a checkpoint, which has no part of it left under its name at any time."""
    if folder.exists():
        doomed = folder.with_name(f"{_PARTIAL}removed-{folder.name}")
        shutil.rmtree(doomed, ignore_errors=True)
        folder.replace(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def load_checkpoint(directory: Path, server_round: int) -> Checkpoint:
    """Read the checkpoint of a round.

    Raises
    ------
    CheckpointError
        When a file is missing or differs from its SHA-256.
    """
    folder = directory / CHECKPOINTS / _name(server_round)
    digests = _read_json(folder / _MANIFEST)
    for name, digest in digests.items():
        _check(folder, name, digest)
    try:
        tensors = _load(folder / _TENSORS) if _TENSORS in digests else {}
        content: Any = join(_read_json(folder / _STATE), tensors)
        stems = [name.removesuffix(".safetensors") for name in digests if name not in (_STATE, _TENSORS)]
        models = {stem: _load(folder / f"{stem}.safetensors") for stem in stems}
        if content["format"] != _FORMAT or content["server_round"] != server_round:
            raise ValueError(
                f"it has format {content['format']} and round {content['server_round']}, not {_FORMAT} and "
                f"{server_round}; continue the run with the version of the app that its config.json names"
            )
        return Checkpoint(server_round, models, content["state"], content["run"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error


def _load(path: Path) -> Weights:
    check_tensors(path)
    return load_file(path)


def _check(folder: Path, name: str, digest: object) -> None:
    """Raise ``CheckpointError`` if a file is missing or differs from its SHA-256."""
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"{folder / _MANIFEST} has a name that is not a file of a checkpoint: {shown(name)}")
    path = folder / name
    try:
        found = digest_of(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if found != digest:
        raise CheckpointError(f"{path} is damaged: its SHA-256 differs from the one in {_MANIFEST}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _name(server_round: int) -> str:
    return f"round-{server_round:04d}"
