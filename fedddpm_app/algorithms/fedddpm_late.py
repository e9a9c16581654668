"""FedDDPM-Late: the auxiliary set comes last, from models that start at the federated model. Our algorithm.

It reverses the order of FedDDPM (Zihao Peng, Xijun Wang, Shengbo Chen, Hong Rao, Cong Shen. 2025.
https://arxiv.org/abs/2503.06426). Its parts are known: experts that are trained apart and then distilled into one model
(Decentralized Diffusion Models, McAllister et al. 2025, https://arxiv.org/abs/2501.05450; DMM, Song et al. 2025,
https://arxiv.org/abs/2504.12364, which starts at the experts' common base), generative distillation (Masip et al. 2023,
https://arxiv.org/abs/2311.14028), distillation of clients' generative models (FedCVAE-KD, Heinbaugh et al., ICLR 2023),
and clients that compare a personal with a global model on held-out data (Wang et al. 2019,
https://arxiv.org/abs/1910.10252). Order, start and vote are this project's.

    Rounds        R rounds of FedAvg -> w
    Fine-tuning   every client i: w_i <- E steps on L(.; D_i) from w; upload w_i and n_i;  wbar = sum n_i w_i / sum n_i
    Vote          client i's loss on its held-out images under w_i and under wbar; the lower has its vote, of weight n_i
    Local wins    D_aux = union over i of m_i samples of w_i, m_i proportional to n_i, sum m_i = M
                  w <- K_s steps on L_KD from wbar, see ``fedddpm_kd``
    Mean wins     the steps that this saves go to the clients: a second fine-tuning, from wbar;  w <- its mean
    Cycles        with c cycles, all of this follows on every R / c rounds

Symbols: as in ``fedddpm``; E -> pretrain-steps, K_s -> correction-steps, wbar -> mean, vote -> late-teacher,
c -> late-cycles.
Deviations: none; it is our algorithm. Fine-tuning has the settings of pretraining. With K_s = 0 the result is wbar:
FedAvg with an annealed and averaged last round. Both outcomes of the vote cost the same compute.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flwr.serverapp import Grid

from fedddpm_app import weights as weights_module
from fedddpm_app.algorithms.fedddpm_kd import FedDDPMKD
from fedddpm_app.auxiliary.generation import GENERATE
from fedddpm_app.auxiliary.pretraining import (
    HELD_OUT_LOSS,
    PRETRAIN,
    PretrainedModel,
    train_own_model,
    with_label_counts,
)
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.device import cpu_threads
from fedddpm_app.federation.cost import FORWARD, Cost, of_images
from fedddpm_app.federation.errors import TooFewRepliesError, check_finite
from fedddpm_app.federation.records import ARRAYS, NUM_EXAMPLES
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import note
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
from fedddpm_app.weights import RunningMean, Weights

_STEPS = "steps"


def fine_tune(request: ActionRequest) -> ActionAnswer:
    """Fine-tune the federated model; if the clients vote, add the loss on the held-out images."""
    steps = request.config.pretrain.steps
    answer = with_label_counts(request, train_own_model(request, steps, "fine-tune", request.server_round))
    if not _votes(request.config):
        return answer
    loss, _ = _held_out_loss(request, answer.records[ARRAYS])
    return ActionAnswer({**answer.metrics, HELD_OUT_LOSS: loss}, answer.records)


def vote(request: ActionRequest) -> ActionAnswer:
    """Return the loss of the received weights on the held-out images, and their number."""
    loss, num_images = _held_out_loss(request, request.weights)
    return ActionAnswer({"loss": loss, NUM_EXAMPLES: num_images})


def anneal(request: ActionRequest) -> ActionAnswer:
    """Fine-tune the received weights once more, for a number of steps that the server sets."""
    return train_own_model(request, int(str(request.values[_STEPS])), "anneal", request.server_round)


def _votes(config: Config) -> bool:
    """Return whether the clients vote; without a distillation there is nothing to choose."""
    return config.late.teacher == "vote" and config.correction.steps > 0


def _held_out_loss(request: ActionRequest, weights: Weights) -> tuple[float, int]:
    weights_module.load_into(request.trainer.model, weights)
    return request.task.held_out_loss(request.trainer.model, request.partition_id)


class FedDDPMLate(FedDDPMKD):
    """FedAvg's rounds; after the last one fine-tuning, a vote, and distillation."""

    key_prefix = "late-"
    client_actions: ClassVar[Mapping[str, ClientAction]] = {
        "pretrain": ClientAction(fine_tune, metrics=PRETRAIN.metrics, records=PRETRAIN.records),
        "generate": GENERATE,
        "vote": ClientAction(vote, metrics=("loss", NUM_EXAMPLES)),
        "anneal": ClientAction(anneal, metrics=PRETRAIN.metrics, records=PRETRAIN.records),
    }

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse a vote without held-out images, and models that are trained before the rounds."""
        super().check_config(config)
        if _votes(config) and config.data.held_out_fraction == 0:
            raise ConfigError(
                'late-teacher = "vote" compares models on held-out images, but held-out-fraction = 0: use '
                'held-out-fraction = 0.1, or late-teacher = "local".'
            )
        if config.late.cycles > config.run.num_rounds:
            raise ConfigError(
                f"late-cycles = {config.late.cycles} is more than num-rounds = {config.run.num_rounds}: use at most "
                "one cycle per round."
            )
        if config.fedddpm.init_from_pretrained:
            raise ConfigError(
                'init-from-pretrained = true: with algorithm = "fedddpm-late" clients train own models after the '
                "rounds only; use init-from-pretrained = false."
            )

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the keys of what comes before round 1."""
        reason = 'algorithm = "fedddpm-late" trains and distils the clients\' models after the rounds'
        idle = ("kd-warmup-steps", "pretrain-from", "init-from-pretrained")
        return super().keys_without_effect(config) | dict.fromkeys(idle, reason)

    @classmethod
    def pretrains(cls, config: Config) -> bool:
        """Return True: clients always fine-tune."""
        return True

    @classmethod
    def builds_at_start(cls, config: Config) -> bool:
        """Return False: D_aux comes last."""
        return False

    @classmethod
    def num_corrections(cls, config: Config) -> int:
        """Return the number of cycles, each of which has a distillation."""
        return config.late.cycles

    @classmethod
    def total_steps(cls, config: Config, client_steps: int) -> int:
        """Add the fine-tuning of further cycles."""
        again = (config.late.cycles - 1) * config.data.num_clients * config.pretrain.steps
        return super().total_steps(config, client_steps) + again

    @classmethod
    def cost(cls, config: Config, sizes: Sequence[int]) -> Cost:
        """Add the votes, for which one more model goes to each client, and further fine-tunings."""
        cost, models, share = super().cost(config, sizes), config.data.num_clients, config.data.held_out_fraction
        again = config.late.cycles - 1
        batches = sum(config.training.batch_size or size for size in sizes)
        cost += of_images(config, again * config.pretrain.steps * batches)
        cost += of_images(config, again * cls._generated_images(config)) if config.correction.steps else Cost()
        cost += Cost(0.0, again * models, again * models)
        if _votes(config):
            held_out = sum(size * share / (1.0 - share) for size in sizes)
            images = config.late.cycles * 2 * held_out * config.evaluation.eval_draws
            cost += of_images(config, images * FORWARD) + Cost(0.0, 0.0, config.late.cycles * models)
        return cost

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Check the model; round 1 starts from the initial weights."""
        if self.config.correction.steps and self.auxiliary_data is None:
            self.auxiliary.check_generates()
        return FederatedStrategy.prepare(self, grid, weights)

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """After a cycle's last round, replace the federated model by the distilled one, or by the clients' mean."""
        if not self.ends_cycle(server_round):
            return weights
        self.auxiliary.renew()
        models = self.auxiliary.pretrained(weights)
        mean = weights_module.weighted_mean((model.load(), model.num_examples) for model in models)
        if self.config.correction.steps == 0:
            return mean
        if not self.choose_local(models, mean):
            return self.fine_tune_again(models, mean)
        self.auxiliary.ensure(weights)
        with self.accounting.timed("correct"), cpu_threads(self.config.run.server_threads):
            distilled = self.correct(server_round, mean)
        fix = f"lower correction-learning-rate = {self.config.correction.learning_rate}"
        check_finite(distilled, "the weights after the distillation", fix)
        return distilled

    def average(self, server_round: int, weights: Weights) -> Weights:
        """Return the result of a cycle as it is: the weights of its rounds are of another kind."""
        return weights if self.ends_cycle(server_round) else super().average(server_round, weights)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; D_aux is read only for the evaluation of a run whose rounds are complete."""
        server_round = self.resumed_round
        complete = server_round == self.config.run.num_rounds
        super().load_state(state if complete else {**state, "auxiliary": ""})
        if self.ends_cycle(server_round):
            self.auxiliary.end()

    def after_checkpoint(self, server_round: int) -> None:
        """Remove the fine-tuned models at the end of a cycle."""
        if self.ends_cycle(server_round):
            self.auxiliary.end()

    def ends_cycle(self, server_round: int) -> bool:
        """Return whether fine-tuning and distillation follow on this round."""
        cycles, rounds = self.config.late.cycles, self.config.run.num_rounds
        return server_round in [cycle * rounds // cycles for cycle in range(1, cycles + 1)]

    def choose_local(self, models: Sequence[PretrainedModel], mean: Weights) -> bool:
        """Return whether the clients' own models teach; each vote is recorded.

        A client without a loss of its own model, or without an answer, does not vote. Without any vote, the mean wins:
        no client has shown that its own model is better.
        """
        if self.config.late.teacher != "vote":
            self.record(**{"late/teacher": self.config.late.teacher})
            return self.config.late.teacher == "local"
        own = {model.partition_id: model.held_out_loss for model in models if model.held_out_loss is not None}
        stream = self.ask_clients("vote", mean, partitions=sorted(own), timeout=self.config.pretrain.timeout)
        answers = {reply.partition_id: reply for reply in stream.answers()}
        images = sum(reply.num_examples for reply in answers.values()) * self.config.evaluation.eval_draws
        self.accounting.images += 2 * images * FORWARD
        losses = {client: reply.number("loss") for client, reply in answers.items()}
        local = [client for client, loss in losses.items() if own[client] < loss]
        sizes = {model.partition_id: model.num_examples for model in models}
        wins = 2 * sum(sizes[client] for client in local) > sum(sizes[client] for client in losses)
        teacher = "local" if wins else "mean"
        self.record(
            **{
                "late/teacher": teacher,
                "late/local_votes": local,
                "late/local_loss": {str(client): own[client] for client in losses},
                "late/mean_loss": {str(client): loss for client, loss in losses.items()},
            }
        )
        note(f"vote: {len(local)} of {len(losses)} clients for their own model; teacher: {teacher}")
        return wins

    def fine_tune_again(self, models: Sequence[PretrainedModel], mean: Weights) -> Weights:
        """Return the mean of a second fine-tuning from ``mean``, which costs as much as the distillation would."""
        config, sizes = self.config, {model.partition_id: model.num_examples for model in models}
        batches = sum(config.training.batch_size or size for size in sizes.values())
        steps = int(self._saved_images(config) / batches)
        self.record(**{"late/anneal_steps": steps})
        if steps == 0:
            return mean
        stream = self.ask_clients(
            "anneal", mean, values={_STEPS: steps}, partitions=sorted(sizes), timeout=config.pretrain.timeout
        )
        annealed = RunningMean()
        for reply in stream.by_partition(self.recorder.scratch):
            annealed.fold(reply.load(), reply.num_examples)
            self.accounting.images += steps * (config.training.batch_size or reply.num_examples)
        if not annealed.total:
            raise TooFewRepliesError(f"anneal: none of the {len(sizes)} clients returned a usable reply")
        return annealed.result()

    @classmethod
    def _saved_images(cls, config: Config) -> float:
        """Return the compute of D_aux and of the distillation, in training images."""
        correction = config.correction
        distilled = correction.steps * (correction.batch_size or config.auxiliary.size) * cls.images_per_image
        return cls._generated_images(config) + distilled

    @classmethod
    def _generated_images(cls, config: Config) -> float:
        """Return the compute of D_aux, in training images."""
        return config.auxiliary.size * config.auxiliary.sampler_steps * FORWARD
