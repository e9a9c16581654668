"""Generation of the auxiliary set by the clients' pretrained models: batch by batch, on the server or on the nodes.

A batch's images depend only on its client's weights and on its seeds. The set is therefore the same for every place and
every order of generation. A finished batch is kept in a file until the whole set is complete.

A client whose model generates NaN, or constant images, is left out, and the others share its part of the set.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import Message
from torch import Tensor

from fedddpm_app.apportion import largest_remainder
from fedddpm_app.auxiliary.batch_files import BatchFiles
from fedddpm_app.auxiliary.requests import ClientShare, Request, Requests
from fedddpm_app.auxiliary.sampler import AuxiliarySampler
from fedddpm_app.auxiliary.share import batches_of
from fedddpm_app.auxiliary.uploads import PretrainedModel
from fedddpm_app.diffusion.images import DivergedError, ImageTensors, check_varied
from fedddpm_app.diffusion.sampling import SampleBatch, split_batches
from fedddpm_app.federation.cost import images_of_generation
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messages.actions import ActionCall
from fedddpm_app.federation.messages.messaging import exchange_about
from fedddpm_app.federation.messages.replies import GONE, ReplyRefusedError
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import ProgressEvent, logger, report
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction, Value

_IMAGES, _SEEDS, _LABELS, _BATCH_SIZE = "images", "seeds", "labels", "batch-size"
_MESSAGES_IN_FLIGHT = 16  # each holds a model


def generate(request: ActionRequest) -> ActionAnswer:
    """Generate images of the set on a client, from its own pretrained model, which the server sends back to it."""
    values: Any = request.values
    labels = torch.tensor(values[_LABELS], dtype=torch.int64) if values[_LABELS] else None
    batches = split_batches(values[_SEEDS], labels, values[_BATCH_SIZE])
    sampler = AuxiliarySampler(request.config, request.trainer.model)
    return ActionAnswer(records={_IMAGES: {_IMAGES: torch.cat(list(sampler.sample(request.weights, batches)))}})


GENERATE = ClientAction(
    generate, records=(_IMAGES,), exact=True, is_private=True, sends_own=True
)  # pixels depend on every bit of the weights


class Generation:
    """Generates an auxiliary set, on the server.

    Parameters
    ----------
    strategy : FederatedStrategy
        Provides config, model, recorder and clients; its ``client_actions`` include ``generate``.
    models : sequence of PretrainedModel
        At least one; client i's share is proportional to n_i.

    Attributes
    ----------
    clients : list of int
        The partition of the client that generated each image.
    """

    def __init__(self, strategy: FederatedStrategy, models: Sequence[PretrainedModel]) -> None:
        self._strategy, self._config = strategy, strategy.config
        self._sampler = AuxiliarySampler(self._config, strategy.trainer.model)
        self._files = BatchFiles(strategy.recorder.durable / "auxiliary")
        self._images = torch.empty((self._config.auxiliary.size, *self._sampler.shape), dtype=torch.uint8)
        self._keys: set[str] = set()
        self._unusable: dict[int, str] = {}
        self._refused: dict[int, str] = {}
        self._divide(models)

    def run(self) -> ImageTensors:
        """Generate and return the set on the CPU, with the shares in the order of the models.

        Raises
        ------
        RoundFailedError
            If no client's model generates images that can be used.
        """
        while not self._complete():
            usable = [share.model for share in self._shares if share.model.partition_id not in self._unusable]
            if not usable:
                partition, reason = next(iter(self._unusable.items()))
                fix = f"lower pretrain-learning-rate = {self._config.pretrain.learning_rate}"
                raise RoundFailedError(f"the auxiliary images of client {partition}: {reason}; {fix}")
            self._divide(usable)
        steps = self._config.auxiliary.sampler_steps
        self._strategy.accounting.images += images_of_generation(len(self._images), steps)
        labels = [share.labels for share in self._shares if share.labels is not None]
        return ImageTensors(self._images, torch.cat(labels) if labels else None)

    def remove_batch_files(self) -> None:
        """Remove the files of the batches, once the set is stored elsewhere."""
        self._files.remove(self._keys)

    def left_out(self) -> dict[str, object]:
        """Return the clients left out, and those whose images the server generated, for a line of ``stats.jsonl``."""
        named = {"aux/left_out": self._unusable, "generate/left_out": self._refused}
        return {key: {str(p): each[p] for p in sorted(each)} for key, each in named.items() if each}

    # ---- the plan -------------------------------------------------------------------------------

    def _divide(self, models: Sequence[PretrainedModel]) -> None:
        """Divide the set between the models by their numbers of images, by largest remainder."""
        counts = largest_remainder(len(self._images), [m.num_examples for m in models])
        self.clients = [m.partition_id for m, count in zip(models, counts, strict=True) for _ in range(count)]
        firsts = [sum(counts[:k]) for k in range(len(counts))]
        self._shares = [self._plan(*each) for each in zip(models, counts, firsts, strict=True)]
        self._keys |= {key for share in self._shares for key in share.keys}

    def _complete(self) -> bool:
        """Generate the missing images; return whether all models could be used."""
        for share in self._shares:
            self._resume(share)
        if self._config.auxiliary.generation == "nodes":
            self._generate_on_nodes()
        usable = [self._generate_here(share) for share in self._shares]
        return all(usable)

    def _plan(self, model: PretrainedModel, count: int, first: int) -> ClientShare:
        """Split a client's share into batches; labels follow its label counts."""
        labels, batches = batches_of(self._config, model.partition_id, count, model.label_counts)
        with model.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        keys = [self._key(digest, batch) for batch in batches]
        return ClientShare(model, first, labels, batches, keys, list(range(len(batches))))

    def _key(self, model_digest: str, batch: SampleBatch) -> str:
        """Return a digest of all that a batch's images depend on, and of the generating side: nodes are not trusted."""
        labels = None if batch.labels is None else batch.labels.tolist()
        inputs = [model_digest, batch.seeds, labels, batch.kept, self._config.auxiliary.generation]
        text = json.dumps([inputs, self._sampler.describe()], sort_keys=True, default=str)
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

    # ---- generating -----------------------------------------------------------------------------

    def _generate_here(self, share: ClientShare) -> bool:
        """Generate the missing images of a client's share; return whether its model can be used."""
        missing, partition = list(share.missing), share.model.partition_id
        if not missing:
            return True
        try:
            generated = self._sampler.sample(share.model.load(), [share.batches[k] for k in missing])
            for index, images in zip(missing, generated, strict=True):
                _check_varied(share, images)
                self._keep(share, index, images)
        except DivergedError as error:
            self._unusable[partition] = str(error)
            text = "auxiliary images: client %d is left out of the set, and the others share its part: %s"
            logger.warning(text, partition, error)
            return False
        return True

    def _keep(self, share: ClientShare, index: int, images: Tensor) -> None:
        self._files.save(share.keys[index], images)
        self._put(share, index, images)

    def _generate_on_nodes(self) -> None:
        """Have each client sample its own model; the server later generates images that are missing or refused."""
        call = self._strategy.action_call("generate", self._config.pretrain.timeout)
        requests = Requests(self._shares, lambda share, indices: self._request(call, share, indices))
        missing = [share.model.partition_id for share in self._shares if share.missing]
        requests.refused |= call.left_out(missing)
        under_way = min(self._strategy.clients.participants.under_way or _MESSAGES_IN_FLIGHT, _MESSAGES_IN_FLIGHT)
        replies = exchange_about(self._strategy.grid, requests.next, call.timeout, under_way)
        try:
            for request, reply in replies:
                self._take(call, request, reply, requests)
        finally:
            for request in requests.under_way:
                call.transport.release(request.packed)
        for share in self._shares:
            if share.missing:
                reason = requests.refused.get(share.model.partition_id, GONE)
                self._refused[share.model.partition_id] = reason
                text = "auxiliary images: the server generates the missing ones of client %d: %s"
                logger.warning(text, share.model.partition_id, reason)

    def _take(self, call: ActionCall, request: Request, message: Message, requests: Requests) -> None:
        """Keep a reply's images, or record the reason why they are refused."""
        partition = request.share.model.partition_id
        kept = [request.share.batches[k].kept for k in request.indices]
        requests.answered(request)
        call.transport.release(request.packed)
        like = torch.empty((sum(kept), *self._sampler.shape), dtype=torch.uint8, device="meta")
        try:
            reply = call.clients.accept(message, partition, call.spec({_IMAGES: {_IMAGES: like}}))
            parts = torch.split(reply.load(_IMAGES)[_IMAGES], kept)
            for part in parts:
                _check_varied(request.share, part)
        except (ReplyRefusedError, DivergedError) as error:
            requests.refused[partition] = str(error)
            return
        for index, part in zip(request.indices, parts, strict=True):
            self._keep(request.share, index, part)

    def _request(self, call: ActionCall, share: ClientShare, indices: list[int]) -> tuple[Request, Message]:
        """Make a request for batches; only the last batch is not full, so that one list of images holds them all."""
        batches = [share.batches[k] for k in indices]
        packed = call.pack(share.model.load())
        seeds = [seed for batch in batches for seed in batch.seeds[: batch.kept]]
        labels = [label for b in batches if b.labels is not None for label in b.labels[: b.kept].tolist()]
        values: dict[str, Value] = {_SEEDS: seeds, _LABELS: labels, _BATCH_SIZE: len(batches[0].seeds)}
        (message,) = call.messages([share.model.partition_id], packed, values)
        return Request(share, indices, packed), message


def _check_varied(share: ClientShare, images: Tensor) -> None:
    """Raise ``DivergedError`` for a constant batch; a single image of a larger share may well be constant."""
    if len(images) > 1 or len(share.batches) == 1:
        check_varied(images)
