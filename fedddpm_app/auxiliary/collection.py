"""The collection of what the clients' own trainings gave, on the server, in a phase that a resumed run does not repeat.

``ModelCollection`` collects the models; ``own_images.ImageCollection`` collects images that they generated.
"""

from collections.abc import Mapping, Sequence
from typing import Generic

from fedddpm_app import weights as weights_module
from fedddpm_app.auxiliary.pretraining import OwnTraining, check_claims
from fedddpm_app.auxiliary.share import counts_of
from fedddpm_app.auxiliary.uploads import COUNT, PretrainedModel, U, UploadFiles
from fedddpm_app.federation.accounting import Span
from fedddpm_app.federation.admission import warn_of_decisive
from fedddpm_app.federation.cost import images_of_generation
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messages.actions import NO_RECORDS
from fedddpm_app.federation.messages.label_counts import check_label_counts
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.federation.messages.streaming import ReplyStream, with_progress
from fedddpm_app.federation.phases import START, counted_phase, finish_phase, finished_phase, forget_phase, replay_phase
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import logger
from fedddpm_app.weights import Weights

_UNKNOWN = "its number of images, and so its part of the auxiliary set, was not known when the phase began"


class Collection(Generic[U]):
    """Has every client train a model of its own, and writes each upload to disk as it arrives.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its ``client_actions`` include that of ``training``.
    training : OwnTraining
        The training.
    start : Weights or None
        The weights that it starts from; None if they are not known any more.

    Attributes
    ----------
    kind : type
        That of the uploads.
    """

    kind: type[U]

    def __init__(self, strategy: FederatedStrategy, training: OwnTraining, start: Weights | None) -> None:
        self._strategy = strategy
        self._training = training
        self._weights = start
        self._start = weights_module.digest(start) if start else ""
        self._files = UploadFiles(strategy.recorder.unfinished, training.name, self.kind)

    # ---- to override ----------------------------------------------------------------------------

    def check(self, reply: Reply) -> None:
        """Raise ``ReplyRefusedError`` for a reply that cannot be used (here: for claims that cannot be true)."""
        check_claims(self._strategy.config, reply)

    def asks(self, count: int) -> bool:
        """Return whether a client is asked whose part of D_aux has ``count`` images."""
        return True

    def like(self, count: int) -> Mapping[str, Weights]:
        """Return references for the records of a client whose part of D_aux has ``count`` images."""
        return NO_RECORDS

    def bytes_received(self, upload: U, start: Weights) -> int:
        """Return the bytes that the client of an upload has got."""
        return self._strategy.transport.expect(start).layout.size

    def refuse_more(self, start: Weights, uploads: dict[int, U], stream: ReplyStream) -> None:
        """Remove uploads that cannot be used beside the others, once all have arrived."""

    # ---- to use ---------------------------------------------------------------------------------

    def run(self) -> list[U]:
        """Return the uploads, at least one, by partition id.

        A client that fails, declines, returns an unusable reply, or does not reply within ``pretrain-timeout`` is named
        in a warning and left out. A resumed run reads what arrived before, and asks only the other clients.

        Raises
        ------
        TooFewRepliesError
            If fewer than ``min-replies`` clients returned something usable, also after ``max-round-retries``
            repetitions.
        RoundFailedError
            When uploads are missing, and the weights that trainings start from are not known.
        """
        strategy, name = self._strategy, self._training.name
        models = self._files.read(self._start)
        row = finished_phase(strategy.recorder, name)
        with strategy.round_log.own_phase() as span:
            if row and row[START].startswith(self._start) and set(row[f"{name}/clients"]) <= models.keys():
                self._note_privacy(list(models.values()))
                replay_phase(strategy.recorder, strategy.accounting, name)
                return self._known([models[partition] for partition in row[f"{name}/clients"]])
            if self._weights is None:
                raise RoundFailedError(
                    f"{name}: models are missing or damaged, and the weights that they were trained from are those of "
                    "an earlier round: restore the folders unfinished and auxiliary of the run from a backup, or start "
                    "a new run."
                )
            if models and not counted_phase(strategy.recorder, name, self._start):
                self._count_again(self._weights, models)
            with strategy.accounting.timed(name):
                left_out = self._collect(self._weights, models, span)
            ordered = [models[partition] for partition in sorted(models)]
            self._note_privacy(ordered)
            row = {"phase": name, "round": strategy.round_log.server_round, START: self._start, **self._row(ordered)}
            finish_phase(strategy.recorder, row | left_out | span.spent("time/phase_s"))
        return self._known(ordered)

    def discard(self) -> None:
        """Remove the models, and forget that the phase is finished."""
        forget_phase(self._strategy.recorder, self._training.name)
        self._files.discard()

    def _row(self, uploads: Sequence[U]) -> dict[str, object]:
        """Return what a line of ``stats.jsonl`` says of the uploads."""
        name = self._training.name
        row: dict[str, object] = {
            f"{name}/clients": [upload.partition_id for upload in uploads],
            f"{name}/client_loss": {str(u.partition_id): u.loss for u in uploads if u.loss is not None},
            **self._strategy.spending.of("pretrain"),
        }
        shares = {str(u.partition_id): u.memorized_share for u in uploads if u.memorized_share is not None}
        return row | ({f"{name}/memorized_share": shares} if shares else {})

    def _note_privacy(self, uploads: Sequence[U]) -> None:
        spending = self._strategy.spending
        spending.know(
            "pretrain", {each.partition_id: each.dp_epsilon for each in uploads if each.dp_epsilon is not None}
        )
        spending.know("total", {each.partition_id: each.dp_total for each in uploads if each.dp_total is not None})

    def _known(self, models: list[U]) -> list[U]:
        """Return the uploads, whose numbers of images are the most that their clients may claim later."""
        sizes = {model.partition_id: model.num_examples for model in models}
        admission = self._strategy.clients.admission
        admission.sizes = sizes | admission.sizes
        warn_of_decisive(sizes)
        return models

    def _count_again(self, start: Weights, models: dict[int, U]) -> None:
        """Add the cost of uploads that an earlier process collected."""
        logger.info("%s: the uploads of the clients %s are kept from before", self._training.name, sorted(models))
        accounting = self._strategy.accounting
        accounting.bytes_up += sum(model.num_bytes for model in models.values())
        accounting.bytes_down += sum(self.bytes_received(model, start) for model in models.values())
        accounting.images += sum(self._images(model) for model in models.values())
        accounting.seconds[self._training.name] += max(model.seconds for model in models.values())

    def _images(self, upload: U) -> float:
        config = self._strategy.config
        drawn = images_of_generation(upload.generated, config.auxiliary.sampler_steps)
        return self._training.images(config, upload.num_examples) + drawn

    def _collect(self, weights: Weights, models: dict[int, U], span: Span) -> dict[str, object]:
        """Add the uploads of the clients that have none; return the clients left out with the reasons."""
        strategy, name, waiting = self._strategy, self._training.name, self._strategy.config.waiting
        quorum = waiting.quorum(strategy.config.data.num_clients)
        call = strategy.action_call(self._training.action or name, strategy.config.pretrain.timeout)
        sizes = self._sizes(models)
        counts = counts_of(strategy.config, sizes)
        quorum = min(quorum, max(1, sum(self.asks(count) for count in counts)))
        declined: dict[int, str] = {}
        for attempt in range(waiting.max_round_retries + 1):
            present = strategy.clients.present(quorum)
            missing = [p for p in present if p not in models and p not in declined and self.asks(counts[p])]
            likes = {partition: self.like(counts[partition]) for partition in missing}
            own = {partition: {COUNT: counts[partition]} for partition in missing}
            stream = call.ask(missing, weights, self._training.values, likes, self.check, own)
            for reply in with_progress(strategy.grid.run, stream.as_they_come(), name):
                models[reply.partition_id] = self._keep(reply, span)
                del reply
            self.refuse_more(weights, models, stream)
            declined |= {partition: stream.refused[partition] for partition in stream.declined}
            unknown = {p: _UNKNOWN for p in present if p not in sizes and not self.asks(counts[p])}
            stream.refused = unknown | declined | stream.refused
            if len(models) >= quorum:
                break
            error = stream.too_few(sum(partition in models for partition in missing), quorum)
            if attempt == waiting.max_round_retries or set(missing) <= declined.keys():
                raise error
            row = {"phase": "abandoned", "round": strategy.round_log.server_round, "attempt": attempt}
            strategy.recorder.append(row | {"reason": str(error)} | stream.left_out(name))
            text = "%s is repeated on the clients without a model (%d of max-round-retries = %d): %s"
            logger.warning(text, name, attempt + 1, waiting.max_round_retries, error)
        return stream.left_out(name)

    def _sizes(self, models: Mapping[int, U]) -> Mapping[int, int]:
        """Return the numbers of images that the parts of D_aux follow: with kept uploads, those that theirs follow.

        A site that is away after a resume is not counted again. Without it, the parts of the others would be larger,
        beside the part that it has sent.
        """
        sizes = self._files.read_sizes(self._start) if models else {}
        if not sizes:
            sizes = self._strategy.clients.admission.sizes
            self._files.keep_sizes(self._start, sizes)
        return sizes

    def _keep(self, reply: Reply, span: Span) -> U:
        labelled = self._strategy.config.data.class_conditional
        model = self._files.write(reply, self._start, span.spent("s")["s"], labelled=labelled)
        self._strategy.accounting.images += self._images(model)
        return model


class ModelCollection(Collection[PretrainedModel]):
    """Collects the clients' own models."""

    kind = PretrainedModel

    def bytes_received(self, upload: PretrainedModel, start: Weights) -> int:
        """Return the bytes of a model, which are the same both ways."""
        return upload.num_bytes

    def check(self, reply: Reply) -> None:
        """Refuse wrong label counts, too."""
        super().check(reply)
        if self._strategy.config.data.class_conditional:
            check_label_counts(self._strategy.config.data.num_classes, reply)

    def refuse_more(self, start: Weights, uploads: dict[int, PretrainedModel], stream: ReplyStream) -> None:
        """Drop the models that changed too much: all have arrived, so all norms are known."""
        norms = {partition: model.update_norm for partition, model in uploads.items()}
        too_large = self._strategy.clients.admission.too_large(norms, lambda: weights_module.norm(start))
        for partition, reason in too_large.items():
            uploads.pop(partition).path.unlink()
            stream.refuse(partition, reason)
