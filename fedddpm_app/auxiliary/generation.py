"""Generating the auxiliary set from the clients' pretrained models: batch by batch, here or on the nodes.

A batch's images depend on its client's weights and its seeds alone, so that the set is the same wherever and in
whatever order it is drawn. A finished batch is kept in a file until the whole set is done.
"""

import hashlib
import json
from collections.abc import Sequence

import torch
from flwr.app import ConfigRecord, Message
from torch import Tensor

from fedddpm_app.apportion import largest_remainder
from fedddpm_app.auxiliary.batch_files import BatchFiles
from fedddpm_app.auxiliary.pretraining import PretrainedModel
from fedddpm_app.auxiliary.requests import ClientShare, Request, Requests
from fedddpm_app.auxiliary.sampler import AuxiliarySampler
from fedddpm_app.diffusion.images import DivergedError, ImageTensors
from fedddpm_app.diffusion.sampling import SampleBatch, image_seeds, split_batches
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messaging import exchange_about
from fedddpm_app.federation.records import ARRAYS, BATCH_SIZE, DRAW, LABELS, SEEDS
from fedddpm_app.federation.replies import GONE, ReplyRefusedError, accept_images
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import ProgressEvent, logger, report

_MESSAGES_IN_FLIGHT = 16  # each holds a model


class Generation:
    """Draws an auxiliary set.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its config, model, recorder, and clients.
    models : sequence of PretrainedModel
        At least one; client i's share is proportional to n_i.
    """

    def __init__(self, strategy: FederatedStrategy, models: Sequence[PretrainedModel]) -> None:
        self._strategy, self._config = strategy, strategy.config
        self._sampler = AuxiliarySampler(self._config, strategy.trainer.model)
        self._files = BatchFiles(strategy.recorder.durable / "auxiliary")
        size = self._config.auxiliary.size
        counts = largest_remainder(size, [m.num_examples for m in models])
        self.clients = [m.partition_id for m, count in zip(models, counts, strict=True) for _ in range(count)]
        self._images = torch.empty((size, *self._sampler.shape), dtype=torch.uint8)
        firsts = [sum(counts[:k]) for k in range(len(counts))]
        self._shares = [self._plan(*each) for each in zip(models, counts, firsts, strict=True)]

    def run(self) -> ImageTensors:
        """Return the set, the shares in the order of the models, on the CPU.

        Raises
        ------
        RoundFailedError
            When a client's model draws NaN.
        """
        for share in self._shares:
            self._resume(share)
        if self._config.auxiliary.generation == "nodes":
            self._draw_on_nodes()
        for share in self._shares:
            self._draw_here(share)
        labels = [share.labels for share in self._shares if share.labels is not None]
        return ImageTensors(self._images, torch.cat(labels) if labels else None)

    def remove_batch_files(self) -> None:
        """Remove the files of the batches, once the set is kept elsewhere."""
        for share in self._shares:
            self._files.remove(share.keys)

    # ---- the plan -------------------------------------------------------------------------------

    def _plan(self, model: PretrainedModel, count: int, first: int) -> ClientShare:
        """Split a client's share into batches; labels follow its label counts, by largest remainder."""
        config, labels = self._config, None
        if config.data.class_conditional:
            per_class = largest_remainder(count, model.label_counts)
            labels = torch.repeat_interleave(torch.arange(len(per_class)), torch.tensor(per_class))
        seeds = image_seeds(config.run.seed, "auxiliary", count, model.partition_id)
        batches = split_batches(seeds, labels, min(config.auxiliary.batch_size, count) or 1)
        with model.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        keys = [self._key(digest, batch) for batch in batches]
        return ClientShare(model, first, labels, batches, keys, list(range(len(batches))))

    def _key(self, model_digest: str, batch: SampleBatch) -> str:
        """Return a digest of all that a batch's images depend on, and of who draws it: nodes are not trusted."""
        labels = None if batch.labels is None else batch.labels.tolist()
        what = [model_digest, batch.seeds, labels, batch.kept, self._config.auxiliary.generation]
        text = json.dumps([what, self._sampler.describe()], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _resume(self, share: ClientShare) -> None:
        for index in list(share.missing):
            images = self._files.load(share.keys[index], (share.batches[index].kept, *self._sampler.shape))
            if images is not None:
                self._put(share, index, images)

    def _put(self, share: ClientShare, index: int, images: Tensor) -> None:
        start = share.first + index * len(share.batches[0].seeds)
        self._images[start : start + len(images)] = images
        share.missing.remove(index)
        total = sum(batch.kept for batch in share.batches)
        done = total - sum(share.batches[k].kept for k in share.missing)
        report(ProgressEvent("auxiliary", done, total, 0, client=share.model.partition_id))

    # ---- drawing --------------------------------------------------------------------------------

    def _draw_here(self, share: ClientShare) -> None:
        missing = list(share.missing)
        if not missing:
            return
        try:
            drawn = self._sampler.draw(share.model.load(), [share.batches[k] for k in missing])
            for index, images in zip(missing, drawn, strict=True):
                self._keep(share, index, images)
        except DivergedError as error:
            raise RoundFailedError(
                f"the auxiliary images of client {share.model.partition_id}: {error}; lower pretrain-learning-rate = "
                f"{self._config.pretrain.learning_rate}"
            ) from error

    def _keep(self, share: ClientShare, index: int, images: Tensor) -> None:
        self._files.save(share.keys[index], images)
        self._put(share, index, images)

    def _draw_on_nodes(self) -> None:
        """Have each client draw from its own model; what does not come, or not well, is left to the server."""
        requests = Requests(self._shares, self._request)
        under_way = min(self._strategy.clients.participants.under_way or _MESSAGES_IN_FLIGHT, _MESSAGES_IN_FLIGHT)
        replies = exchange_about(self._strategy.grid, requests.next, self._config.pretrain.timeout, under_way)
        try:
            for request, reply in replies:
                self._take(request, reply, requests)
        finally:
            for request in requests.under_way:
                self._strategy.transport.release(request.packed)
        for share in self._shares:
            if share.missing:
                reason = requests.refused.get(share.model.partition_id, GONE)
                text = "auxiliary images: the server draws those of client %d that are missing: %s"
                logger.warning(text, share.model.partition_id, reason)

    def _take(self, request: Request, reply: Message, requests: Requests) -> None:
        """Keep a reply's images, or note why they are refused."""
        share = request.share
        kept = [share.batches[k].kept for k in request.indices]
        requests.answered(request)
        self._strategy.transport.release(request.packed)
        try:
            images = accept_images(reply, (sum(kept), *self._sampler.shape))
        except ReplyRefusedError as error:
            requests.refused[share.model.partition_id] = str(error)
            return
        self._strategy.accounting.bytes_up += images.nbytes
        for index, part in zip(request.indices, torch.split(images, kept), strict=True):
            self._keep(share, index, part)

    def _request(self, share: ClientShare, indices: list[int]) -> tuple[Request, Message]:
        """Ask a client for batches; only the set's last one is not full, so that they can be told as one list."""
        timeout, partition = self._config.pretrain.timeout, share.model.partition_id
        batches = [share.batches[k] for k in indices]
        packed = self._strategy.transport.pack(share.model.load(), "fp32")  # pixels depend on every bit
        (message,) = self._strategy.clients.address([partition], DRAW, {ARRAYS: packed}, 0, timeout)
        seeds = [seed for batch in batches for seed in batch.seeds[: batch.kept]]
        labels = [label for b in batches if b.labels is not None for label in b.labels[: b.kept].tolist()]
        size = len(batches[0].seeds)
        message.content[DRAW] = ConfigRecord({SEEDS: seeds, LABELS: labels, BATCH_SIZE: size})
        return Request(share, indices, packed), message
