"""The clients' own models on the server: files that outlive the process, one for each client."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fedddpm_app.disk.durable import digest_of, publish, unfinished
from fedddpm_app.federation.replies import Reply
from fedddpm_app.progress import logger
from fedddpm_app.training.privacy import DP_EPSILON
from fedddpm_app.weights import Weights

LABEL_COUNTS, HELD_OUT_LOSS = "label-counts", "held-out-loss"
_ABOUT = "about"


@dataclass(frozen=True)
class PretrainedModel:
    """A client's own model, kept on disk.

    Attributes
    ----------
    partition_id : int
        The client's partition.
    num_examples : int
        n_i.
    label_counts : list of int
        Images per class; empty for an unconditional model.
    loss : float or None
        Denoising loss over the last tenth of its training; None if the client trained privately.
    path : Path
        The safetensors file.
    start : str
        The digest of the weights that its training started from.
    num_bytes : int
        Bytes of its weights as received.
    seconds : float
        The time from the start of the phase to its arrival.
    update_norm : float
        The L2 norm of the change from the weights that its training started from.
    held_out_loss : float or None
        Denoising loss of the model on the client's held-out images, if the client reported it.
    dp_epsilon : float or None
        The privacy that the client has spent on pretraining, if it trained privately.
    """

    partition_id: int
    num_examples: int
    label_counts: list[int]
    loss: float | None
    path: Path
    start: str = ""
    num_bytes: int = 0
    seconds: float = 0.0
    update_norm: float = 0.0
    held_out_loss: float | None = None
    dp_epsilon: float | None = None

    def load(self) -> Weights:
        """Read the weights."""
        return load_file(self.path)


class ModelFiles:
    """The models of one phase.

    Parameters
    ----------
    folder : Path
        Created with the first model.
    phase : str
        The beginning of the files' names.
    """

    def __init__(self, folder: Path, phase: str) -> None:
        self._folder = folder
        self._phase = phase

    def read(self, start: str) -> dict[int, PretrainedModel]:
        """Return the models of an earlier process by partition; damaged files cost a warning.

        A model of another ``start`` is of an earlier phase, and is removed; an empty ``start`` accepts all models.
        """
        found = {}
        for path in self._paths():
            model = self._read(path)
            if model is not None and start not in ("", model.start):
                path.unlink()
            elif model is not None:
                found[model.partition_id] = model
        return found

    def write(self, reply: Reply, start: str, seconds: float, *, labelled: bool) -> PretrainedModel:
        """Write a reply's model, with its label counts if ``labelled``.

        The file is complete or absent, and its name ends in its SHA-256.
        """
        counts: Any = reply.metrics[LABEL_COUNTS] if labelled else []
        about: dict[str, Any] = {
            "partition_id": reply.partition_id,
            "num_examples": reply.num_examples,
            "label_counts": [*counts],
            "loss": _finite(reply.metrics.get("final-loss")),
            "start": start,
            "update_norm": reply.update_norm or 0.0,
            "held_out_loss": _finite(reply.metrics.get(HELD_OUT_LOSS)),
            "dp_epsilon": _finite(reply.metrics.get(DP_EPSILON)),
            "num_bytes": reply.num_bytes,
            "seconds": seconds,
        }
        name = f"{self._phase}-{reply.partition_id:04d}"
        with unfinished(self._folder / name) as work:
            save_file(reply.load(), work, {_ABOUT: json.dumps(about)})
            path = work.with_name(f"{name}-{digest_of(work)}.safetensors")
            publish(work, path)
        return PretrainedModel(path=path, **about)

    def discard(self) -> None:
        """Remove all models."""
        for path in self._paths():
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._phase}-*.safetensors"))

    def _read(self, path: Path) -> PretrainedModel | None:
        """Return a model; None, with a warning, if its file is damaged."""
        try:
            if digest_of(path) != path.stem.rpartition("-")[2]:
                raise ValueError("its SHA-256 differs")
            with safe_open(path, framework="pt") as file:
                return PretrainedModel(path=path, **json.loads((file.metadata() or {})[_ABOUT]))
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            logger.warning("the model %s is damaged (%s): its client trains it again", path, error)
            return None


def _finite(value: object) -> float | None:
    """Return a reported number; None if it is not there, or is not a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
