"""What clients upload before or between the rounds, on the server: files that outlive the process, one per client."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fedddpm_app.disk.bounded import read_json
from fedddpm_app.disk.durable import digest_of, publish, replacing, unfinished
from fedddpm_app.federation.messages.label_counts import LABEL_COUNTS
from fedddpm_app.federation.messages.records import ARRAYS
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.progress import logger
from fedddpm_app.training.privacy import DP_EPSILON, DP_EPSILON_TOTAL
from fedddpm_app.weights import Weights

HELD_OUT_LOSS = "held-out-loss"
MEMORIZED_SHARE, GENERATED, REPLACED = "memorized-share", "generated", "replaced"
COUNT = "count"  # in a request: the number of images of the client's part of D_aux
_ABOUT = "about"


@dataclass(frozen=True, kw_only=True)
class Upload:
    """What a client uploaded, kept on disk.

    Attributes
    ----------
    partition_id : int
        The client's partition.
    num_examples : int
        n_i.
    loss : float or None
        Denoising loss over the last tenth of the training of its own model; None if the client trained privately.
    path : Path
        The safetensors file.
    start : str
        The digest of the weights that this training started from.
    num_bytes : int
        Bytes of the content as received.
    seconds : float
        The time from the start of the phase to its arrival.
    memorized_share : float or None
        The share of near copies among images of its model, as the client reports it; None if it did not look.
    generated : int
        The number of images that it generated.
    dp_epsilon, dp_total : float or None
        The privacy that the client has spent on this training, and in all its private trainings of the run, if it
        trained privately.
    """

    partition_id: int
    num_examples: int
    loss: float | None
    path: Path
    start: str = ""
    num_bytes: int = 0
    seconds: float = 0.0
    memorized_share: float | None = None
    generated: int = 0
    dp_epsilon: float | None = None
    dp_total: float | None = None

    @classmethod
    def content(cls, reply: Reply, *, labelled: bool) -> tuple[dict[str, Any], Weights]:
        """Return what is known from a checked reply, by the names of fields, and the tensors of its file."""
        about = {
            "partition_id": reply.partition_id,
            "num_examples": reply.num_examples,
            "loss": _finite(reply.metrics.get("final-loss")),
            "num_bytes": reply.num_bytes,
            "memorized_share": _finite(reply.metrics.get(MEMORIZED_SHARE)),
            "generated": int(_finite(reply.metrics.get(GENERATED)) or 0),
            "dp_epsilon": _finite(reply.metrics.get(DP_EPSILON)),
            "dp_total": _finite(reply.metrics.get(DP_EPSILON_TOTAL)),
        }
        return about, {}


@dataclass(frozen=True, kw_only=True)
class PretrainedModel(Upload):
    """A client's own model.

    Attributes
    ----------
    label_counts : list of int
        Images per class; empty for an unconditional model.
    update_norm : float
        The L2 norm of the change from the weights that its training started from.
    held_out_loss : float or None
        Denoising loss of the model on the client's held-out images, if the client reported it.
    """

    label_counts: list[int]
    update_norm: float = 0.0
    held_out_loss: float | None = None

    @classmethod
    def content(cls, reply: Reply, *, labelled: bool) -> tuple[dict[str, Any], Weights]:
        """Add the label counts, if ``labelled``, and the weights."""
        about, _ = super().content(reply, labelled=labelled)
        counts: Any = reply.metrics[LABEL_COUNTS] if labelled else []
        about |= {
            "label_counts": [*counts],
            "update_norm": reply.update_norm or 0.0,
            "held_out_loss": _finite(reply.metrics.get(HELD_OUT_LOSS)),
        }
        return about, reply.load(ARRAYS)

    def load(self) -> Weights:
        """Read the weights."""
        return load_file(self.path)


U = TypeVar("U", bound=Upload)


class UploadFiles(Generic[U]):
    """The uploads of one phase.

    Parameters
    ----------
    folder : Path
        Created with the first upload.
    phase : str
        The beginning of the files' names.
    kind : type
        That of the uploads.
    """

    def __init__(self, folder: Path, phase: str, kind: type[U]) -> None:
        self._folder = folder
        self._phase = phase
        self._kind = kind

    def read(self, start: str) -> dict[int, U]:
        """Return the uploads of an earlier process by partition; damaged files cost a warning.

        An upload of another ``start`` is of an earlier phase, and is removed; an empty ``start`` accepts all.
        """
        found = {}
        for path in self._paths():
            upload = self._read(path)
            if upload is not None and start not in ("", upload.start):
                path.unlink()
            elif upload is not None:
                found[upload.partition_id] = upload
        return found

    def write(self, reply: Reply, start: str, seconds: float, *, labelled: bool) -> U:
        """Write a reply's upload; ``labelled`` says whether the model has classes.

        The file is complete or absent, and its name ends in its SHA-256.
        """
        about, tensors = self._kind.content(reply, labelled=labelled)
        about |= {"start": start, "seconds": seconds}
        name = f"{self._phase}-{reply.partition_id:04d}"
        with unfinished(self._folder / name) as work:
            save_file(tensors, work, {_ABOUT: json.dumps(about)})
            path = work.with_name(f"{name}-{digest_of(work)}.safetensors")
            publish(work, path)
        return self._kind(path=path, **about)

    def keep_sizes(self, start: str, sizes: Mapping[int, int]) -> None:
        """Keep the numbers of images that the clients' parts of D_aux follow, for a resumed run."""
        with replacing(self._sizes) as work:
            work.write_text(json.dumps([start, sizes]), encoding="utf-8")

    def read_sizes(self, start: str) -> dict[int, int]:
        """Return the numbers of images, by partition, that an earlier process has kept; empty without any."""
        try:
            kept_start, sizes = read_json(self._sizes)
            return {int(partition): int(size) for partition, size in sizes.items()} if kept_start == start else {}
        except (OSError, ValueError, TypeError, AttributeError, OverflowError):  # it is counted again
            return {}

    def discard(self) -> None:
        """Remove all uploads."""
        for path in (*self._paths(), self._sizes):
            path.unlink(missing_ok=True)

    @property
    def _sizes(self) -> Path:
        return self._folder / f"sizes-{self._phase}.json"

    def _paths(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._phase}-*.safetensors"))

    def _read(self, path: Path) -> U | None:
        """Return an upload; None, with a warning, if its file is damaged."""
        try:
            if digest_of(path) != path.stem.rpartition("-")[2]:
                raise ValueError("its SHA-256 differs")
            with safe_open(path, framework="pt") as file:
                return self._kind(path=path, **json.loads((file.metadata() or {})[_ABOUT]))
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            logger.warning("the upload %s is damaged (%s): its client makes it again", path, error)
            return None


def _finite(value: object) -> float | None:
    """Return a reported number; None if it is not there, or is not a finite number."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
