"""The collection of the clients' own models on the server, in a phase of its own that a resumed run does not repeat."""

import functools

from fedddpm_app import weights as weights_module
from fedddpm_app.auxiliary.models import ModelFiles, PretrainedModel
from fedddpm_app.auxiliary.pretraining import OwnTraining, check_label_counts
from fedddpm_app.federation.accounting import Span
from fedddpm_app.federation.actions import NO_RECORDS
from fedddpm_app.federation.admission import warn_of_decisive
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.participants import is_deployed
from fedddpm_app.federation.phases import START, finish_phase, finished_phase, forget_phase, replay_phase
from fedddpm_app.federation.replies import Reply
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.federation.streaming import ReplyStream, with_progress
from fedddpm_app.progress import logger
from fedddpm_app.weights import Weights


class Collection:
    """Has every client train a model of its own, and writes each model to disk as it arrives.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its ``client_actions`` include ``training.name``.
    training : OwnTraining
        The training.
    start : Weights or None
        The weights that it starts from; None if they are not known any more.
    """

    def __init__(self, strategy: FederatedStrategy, training: OwnTraining, start: Weights | None) -> None:
        self._strategy = strategy
        self._training = training
        self._weights = start
        self._start = weights_module.digest(start) if start else ""
        self._files = ModelFiles(strategy.recorder.unfinished, training.name)

    def run(self) -> list[PretrainedModel]:
        """Return the models, at least one, by partition id.

        A client that fails, returns an unusable reply, or does not reply within ``pretrain-timeout`` is named in a
        warning and left out. A resumed run reads the models that arrived before, and asks only the other clients.

        Raises
        ------
        TooFewRepliesError
            If fewer than ``min-replies`` clients returned a usable model, also after ``max-round-retries`` repetitions.
        RoundFailedError
            When models are missing, and the weights that they start from are not known.
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
                    "an earlier round: restore the folder unfinished of the run from a backup, or start a new run."
                )
            if models:
                self._count_again(models)
            with strategy.accounting.timed(name):
                left_out = self._collect(self._weights, models, span)
            ordered = [models[partition] for partition in sorted(models)]
            self._note_privacy(ordered)
            row = {
                "phase": name,
                "round": strategy.round_log.server_round,
                START: self._start,
                f"{name}/clients": [m.partition_id for m in ordered],
                f"{name}/client_loss": {str(m.partition_id): m.loss for m in ordered if m.loss is not None},
                **strategy.spending.of("pretrain"),
            }
            finish_phase(strategy.recorder, row | left_out | span.spent("time/phase_s"))
        return self._known(ordered)

    def discard(self) -> None:
        """Remove the models, and forget that the phase is finished."""
        forget_phase(self._strategy.recorder, self._training.name)
        self._files.discard()

    def _note_privacy(self, models: list[PretrainedModel]) -> None:
        spent = {model.partition_id: model.dp_epsilon for model in models if model.dp_epsilon is not None}
        self._strategy.spending.know("pretrain", spent)

    def _known(self, models: list[PretrainedModel]) -> list[PretrainedModel]:
        """Return the models, whose numbers of images are the most that their clients may claim later."""
        sizes = {model.partition_id: model.num_examples for model in models}
        admission = self._strategy.clients.admission
        admission.sizes = sizes | admission.sizes
        warn_of_decisive(sizes)
        return models

    def _count_again(self, models: dict[int, PretrainedModel]) -> None:
        """Add the cost of models that an earlier process collected."""
        logger.info("%s: the models of the clients %s are kept from before", self._training.name, sorted(models))
        accounting = self._strategy.accounting
        accounting.bytes_up += sum(model.num_bytes for model in models.values())
        accounting.bytes_down += sum(model.num_bytes for model in models.values())
        accounting.images += sum(self._images(model) for model in models.values())
        accounting.seconds[self._training.name] += max(model.seconds for model in models.values())

    def _images(self, model: PretrainedModel) -> float:
        return self._training.images(self._strategy.config, model.num_examples)

    def _collect(self, weights: Weights, models: dict[int, PretrainedModel], span: Span) -> dict[str, object]:
        """Add the models of the clients that have none; return the clients left out with the reasons."""
        strategy, name, waiting = self._strategy, self._training.name, self._strategy.config.waiting
        quorum = waiting.quorum(strategy.config.data.num_clients)
        call = strategy.action_call(name, strategy.config.pretrain.timeout)
        check = functools.partial(check_label_counts, strategy.config)
        for attempt in range(waiting.max_round_retries + 1):
            present = strategy.clients.present(quorum)
            missing = [partition for partition in present if partition not in models]
            stream = call.ask(missing, weights, self._training.values, NO_RECORDS, check)
            answers = stream.as_they_come()
            for reply in with_progress(answers, name) if is_deployed(strategy.grid.run) else answers:
                models[reply.partition_id] = self._keep(reply, span)
                del reply
            self._judge(weights, models, stream)
            if len(models) >= quorum:
                break
            error = stream.too_few(sum(partition in models for partition in missing), quorum)
            if attempt == waiting.max_round_retries:
                raise error
            row = {"phase": "abandoned", "round": strategy.round_log.server_round, "attempt": attempt}
            strategy.recorder.append(row | {"reason": str(error)} | stream.left_out(name))
            text = "%s is repeated on the clients without a model (%d of max-round-retries = %d): %s"
            logger.warning(text, name, attempt + 1, waiting.max_round_retries, error)
        return stream.left_out(name)

    def _keep(self, reply: Reply, span: Span) -> PretrainedModel:
        labelled = self._strategy.config.data.class_conditional
        model = self._files.write(reply, self._start, span.spent("s")["s"], labelled=labelled)
        self._strategy.accounting.images += self._images(model)
        return model

    def _judge(self, weights: Weights, models: dict[int, PretrainedModel], stream: ReplyStream) -> None:
        """Drop the models that changed too much: all have arrived, so all norms are known."""
        norms = {partition: model.update_norm for partition, model in models.items()}
        too_large = self._strategy.clients.admission.too_large(norms, lambda: weights_module.norm(weights))
        for partition, reason in too_large.items():
            models.pop(partition).path.unlink()
            stream.refuse(partition, reason)
