"""A client's own images: it generates its part of D_aux itself, checks it, and uploads images instead of its model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fedddpm_app.auxiliary.collection import Collection
from fedddpm_app.auxiliary.gate import Gate, check_share, open_gate
from fedddpm_app.auxiliary.pretraining import LEAST_CHECKED, METRICS, TRIES, OwnTraining, drawn, images_asked, train_own
from fedddpm_app.auxiliary.sampler import AuxiliarySampler
from fedddpm_app.auxiliary.share import batches_again, batches_of
from fedddpm_app.auxiliary.uploads import GENERATED, MEMORIZED_SHARE, REPLACED, Upload
from fedddpm_app.config import Config
from fedddpm_app.diffusion.images import DivergedError, ImageTensors, check_varied, concatenate
from fedddpm_app.federation.messages.records import NUM_EXAMPLES
from fedddpm_app.federation.messages.replies import Reply, ReplyRefusedError
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
from fedddpm_app.training.declined import DeclinedError
from fedddpm_app.weights import Weights

NAME = "share_images"
_RECORD, _PIXELS, _LABELS = "images", "images", "labels"
_KEPT = "images"


# ---- the client half -------------------------------------------------------------------------


def share_images(request: ActionRequest) -> ActionAnswer:
    """Train a local model, and return the client's part of D_aux as uint8 images; the model stays here.

    Near copies of training images are generated again, at most three times, and then left out. Of a private model they
    stay, where a site's policy has them counted: how many there are has no noise.
    """
    config, partition_id = request.config, request.partition_id
    count = images_asked(request)
    result, num_examples = train_own(request, config.pretrain.steps, "pretrain")
    labels, batches = batches_of(config, partition_id, count, request.task.label_counts(partition_id))
    sampler = AuxiliarySampler(config, request.trainer.model)
    images = drawn(sampler, result.weights, batches)
    kept = torch.ones(len(images), dtype=torch.bool)
    found: dict[str, float] = {GENERATED: len(images)}
    if config.checks_memorization:
        gate = open_gate(config, request.task, partition_id)
        copies, found = _judged(request, gate, sampler, result.weights, images)
        if result.privacy is None:
            kept, found = _without_copies(request, gate, sampler, result.weights, images, labels, copies, found)
        else:
            del found[MEMORIZED_SHARE]
    if not kept.any():
        raise DeclinedError(f"it shares nothing: its {len(images)} images and those in their place are near copies")
    metrics = {**result.metrics(), NUM_EXAMPLES: num_examples, _KEPT: int(kept.sum()), **found}
    return ActionAnswer(metrics, {_RECORD: _packed(images, labels, kept)})


def _judged(
    request: ActionRequest, gate: Gate, sampler: AuxiliarySampler, weights: Weights, images: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """Return which images are near copies, and what is to be reported; decline if it is too large a share of them."""
    config, partition_id = request.config, request.partition_id
    copies, generated = gate.copies(images), len(images)
    judged = copies
    if len(images) < LEAST_CHECKED:  # a share of fewer says little
        _, batches = batches_of(config, partition_id, LEAST_CHECKED, request.task.label_counts(partition_id))
        judged = gate.copies(drawn(sampler, weights, batches))
        generated += len(judged)
    share = check_share(config, judged, len(request.task.train_data(partition_id)))
    return copies, {MEMORIZED_SHARE: share, GENERATED: generated}


def _without_copies(
    request: ActionRequest,
    gate: Gate,
    sampler: AuxiliarySampler,
    weights: Weights,
    images: Tensor,
    labels: Tensor | None,
    copies: Tensor,
    found: dict[str, float],
) -> tuple[Tensor, dict[str, float]]:
    """Replace ``copies`` among ``images``, in place; return which images are none, and what is to be reported."""
    config, partition_id = request.config, request.partition_id
    first, generated = int(copies.sum()), found[GENERATED]
    for attempt in range(1, TRIES + 1):
        index = copies.nonzero().flatten()
        if not len(index):
            break
        batches = batches_again(config, partition_id, attempt, len(index), None if labels is None else labels[index])
        again = drawn(sampler, weights, batches)
        images[index], copies[index] = again, gate.copies(again)
        generated += len(again)
    return ~copies, {**found, GENERATED: generated, REPLACED: first - int(copies.sum())}


def _packed(images: Tensor, labels: Tensor | None, kept: Tensor) -> Weights:
    """Return the kept images first, and zeros in the place of the others: the shapes were agreed before."""
    order = torch.cat([kept.nonzero().flatten(), (~kept).nonzero().flatten()])
    pixels = images[order]
    pixels[int(kept.sum()) :] = 0
    return {_PIXELS: pixels} | ({} if labels is None else {_LABELS: labels[order]})


# ---- the server half -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class OwnImages(Upload):
    """A client's part of D_aux, generated by itself.

    Attributes
    ----------
    count : int
        The number of its images.
    replaced : int
        The number of near copies that the client has replaced by other images.
    """

    count: int
    replaced: int = 0

    @classmethod
    def content(cls, reply: Reply, *, labelled: bool) -> tuple[dict[str, Any], Weights]:
        """Add the images, and their labels if ``labelled``."""
        about, _ = super().content(reply, labelled=labelled)
        replaced, kept = reply.number(REPLACED), int(reply.number(_KEPT))
        about |= {"count": kept, "replaced": int(replaced) if replaced >= 0 else 0}
        return about, {name: tensor[:kept].clone() for name, tensor in reply.load(_RECORD).items()}

    def load(self) -> ImageTensors:
        """Read the images."""
        stored = load_file(self.path)
        return ImageTensors(stored[_PIXELS], stored.get(_LABELS))


class ImageCollection(Collection[OwnImages]):
    """Collects the clients' own images."""

    kind = OwnImages

    def asks(self, count: int) -> bool:
        """Ask only clients that have a part of D_aux."""
        return count > 0

    def like(self, count: int) -> Mapping[str, Weights]:
        """Return the shapes of ``count`` images, as meta tensors."""
        data = self._strategy.config.data
        shapes = {_PIXELS: torch.empty((count, *data.image_shape), dtype=torch.uint8, device="meta")}
        if data.class_conditional:
            shapes[_LABELS] = torch.empty(count, dtype=torch.int64, device="meta")
        return {_RECORD: shapes}

    def check(self, reply: Reply) -> None:
        """Refuse images that hold nothing, and labels that are no classes, too."""
        super().check(reply)
        record, kept, data = reply.load(_RECORD), reply.number(_KEPT), self._strategy.config.data
        if not (kept.is_integer() and 1 <= kept <= len(record[_PIXELS])):
            raise ReplyRefusedError(f"it shares {kept:g} images, but was asked for {len(record[_PIXELS])}")
        try:
            check_varied(record[_PIXELS][: int(kept)])
        except DivergedError as error:
            raise ReplyRefusedError(str(error)) from error
        labels = record.get(_LABELS)
        if labels is not None and not ((labels >= 0) & (labels < data.num_classes)).all():
            raise ReplyRefusedError(f"a label is not in 0 to {data.num_classes - 1}")


def joined(uploads: Sequence[OwnImages]) -> tuple[ImageTensors, list[int]]:
    """Return the union of the clients' images, on the CPU, and the partition of each image's client."""
    parts = [upload.load() for upload in uploads]
    return concatenate(parts), [upload.partition_id for upload in uploads for _ in range(upload.count)]


def row_of(uploads: Sequence[OwnImages]) -> dict[str, object]:
    """Return what a line of ``stats.jsonl`` says of the clients' images; there are no images and no names in it."""
    shared = {str(upload.partition_id): upload.count for upload in uploads}
    return {"aux/shared": shared, "aux/replaced": {str(upload.partition_id): upload.replaced for upload in uploads}}


SHARE_IMAGES = ClientAction(
    share_images, metrics=(*METRICS, _KEPT), records=(_RECORD,), is_checked=True, is_private=True
)


def image_training(config: Config) -> OwnTraining:
    """Return pretraining by clients that share images."""
    return OwnTraining("pretrain", config.pretrain.steps, action=NAME)
