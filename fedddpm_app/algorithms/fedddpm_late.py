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
from dataclasses import replace
from typing import Any, ClassVar

from flwr.serverapp import Grid

from fedddpm_app import weights as weights_module
from fedddpm_app.algorithms.fedddpm_kd import Distilling
from fedddpm_app.auxiliary.collection import ModelCollection
from fedddpm_app.auxiliary.generation import GENERATE
from fedddpm_app.auxiliary.pretraining import PRETRAIN, OwnTraining, train_own_model, with_label_counts
from fedddpm_app.auxiliary.uploads import PretrainedModel
from fedddpm_app.auxiliary.vote import VOTE, own_models_win, voting_images, with_held_out_loss
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.federation.cost import Cost, of_images
from fedddpm_app.federation.errors import TooFewRepliesError
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import logger
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
from fedddpm_app.weights import Weights

_FINE_TUNE, _ANNEAL, _STEPS = "fine_tune", "anneal", "steps"


# ---- the client half -------------------------------------------------------------------------


def fine_tune(request: ActionRequest) -> ActionAnswer:
    """Fine-tune the federated model; if the clients vote, add the loss on the held-out images."""
    steps = request.config.pretrain.steps
    answer = with_label_counts(request, train_own_model(request, steps, _FINE_TUNE, request.server_round))
    return with_held_out_loss(request, answer) if votes(request.config) else answer


def anneal(request: ActionRequest) -> ActionAnswer:
    """Fine-tune the received weights once more, for a number of steps that the server sets."""
    steps = int(str(request.values[_STEPS]))
    return with_label_counts(request, train_own_model(request, steps, _ANNEAL, request.server_round))


def votes(config: Config) -> bool:
    """Return whether the clients vote; without a distillation there is nothing to choose."""
    return config.late.teacher == "vote" and config.correction.steps > 0


# ---- the server half -------------------------------------------------------------------------


class FedDDPMLate(Distilling):
    """FedAvg's rounds; after the last one of each cycle fine-tuning, a vote, and distillation."""

    key_prefix = "late-"
    client_actions: ClassVar[Mapping[str, ClientAction]] = {
        _FINE_TUNE: replace(PRETRAIN, run=fine_tune, is_private=False),
        "vote": VOTE,
        _ANNEAL: replace(PRETRAIN, run=anneal, is_private=False),
        "generate": GENERATE,
    }
    fixed_on_resume = ("num-rounds", "eval-draws")  # when a cycle ends, and the loss by which clients vote

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse a vote without held-out images, and models that are trained before the rounds."""
        super().check_config(config)
        if votes(config) and config.data.held_out_fraction == 0:
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
        """Add the keys of pretraining before round 1, and those of a distillation that does not happen."""
        unused = super().keys_without_effect(config)
        reason = 'algorithm = "fedddpm-late" trains the clients\' own models after the rounds'
        unused |= dict.fromkeys(("pretrain-from", "init-from-pretrained"), reason)
        if config.correction.steps == 0:
            unused["late-teacher"] = "correction-steps = 0"
        elif config.late.teacher == "mean":
            training = ("correction-learning-rate", "correction-learning-rate-schedule", "correction-keep-optimizer")
            sampling = () if config.checks_memorization else ("auxiliary-sampler", "auxiliary-batch-size")
            generation = (*sampling, "auxiliary-generation", "keep-auxiliary")
            unused |= dict.fromkeys((*training, *generation), 'late-teacher = "mean"')
        return unused

    @classmethod
    def averages(cls, config: Config) -> dict[str, tuple[int, str]]:
        """Leave out the average over the rounds, in whose place the result of a cycle comes."""
        return {key: value for key, value in super().averages(config).items() if key != "server-ema-decay"}

    @classmethod
    def own_training(cls, config: Config) -> OwnTraining:
        """Return the fine-tuning."""
        return OwnTraining(_FINE_TUNE, config.pretrain.steps)

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
        """Return the number of cycles, each of which has at most one distillation."""
        return config.late.cycles

    @classmethod
    def total_steps(cls, config: Config, client_steps: int) -> int:
        """Add the fine-tuning of further cycles."""
        again = (config.late.cycles - 1) * config.data.num_clients * config.pretrain.steps
        return super().total_steps(config, client_steps) + again

    @classmethod
    def cost(cls, config: Config, sizes: Sequence[int]) -> Cost:
        """Add the votes, for which one more model goes to each client, and the other parts of further cycles.

        If the mean wins, the compute is the same, but one more model goes to and comes from each client.
        """
        cost, cycles, models = super().cost(config, sizes), config.late.cycles, config.data.num_clients
        for _ in range(cycles - 1):
            cost += cls.cost_of_own_models(config, sizes)
            cost += of_images(config, cls.generated_images(config) if config.correction.steps else 0.0)
        if votes(config):
            voting = cycles * sum(voting_images(config, size) for size in sizes)
            cost += of_images(config, voting) + Cost(0.0, 0.0, cycles * models)
        elif config.correction.steps and config.late.teacher == "mean":
            cost += Cost(0.0, cycles * models, cycles * models)
        return cost

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Check the model; round 1 starts from the initial weights."""
        if self.config.correction.steps and self.config.late.teacher != "mean":
            if self.auxiliary_data is not None:
                self.objective(self.auxiliary_data)  # refuses it
            self.auxiliary.check_generates()
        return FederatedStrategy.prepare(self, grid, weights)

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """After a cycle's last round, replace the federated model by the distilled one, or by the clients' mean."""
        if not self.ends_cycle(server_round):
            return weights
        self.auxiliary.renew()
        models = self.auxiliary.pretrained(weights)
        mean = weights_module.weighted_mean((model.load(), model.num_examples) for model in models)
        if self.config.correction.steps == 0 or not self.should_correct(server_round, mean):
            return mean
        if not self.choose_local(models, mean):
            return self.fine_tune_again(models, mean)
        self.auxiliary.ensure(weights)
        return self.corrected(server_round, mean)

    def average(self, server_round: int, weights: Weights) -> Weights:
        """Return the result of a cycle as it is: the weights of its rounds are of another kind."""
        return weights if self.ends_cycle(server_round) else super().average(server_round, weights)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; D_aux is read only for the evaluation of a run whose rounds are complete."""
        complete = self.resumed_round == self.config.run.num_rounds
        super().load_state(state if complete else {**state, "auxiliary": None})

    def after_checkpoint(self, server_round: int) -> None:
        """Remove the fine-tuned models at the end of a cycle."""
        if self.ends_cycle(server_round) and self.recorder.wait_for_checkpoint():
            self.auxiliary.end()
            self._annealing(0, None).discard()

    def ends_cycle(self, server_round: int) -> bool:
        """Return whether fine-tuning and distillation follow on this round."""
        cycles, rounds = self.config.late.cycles, self.config.run.num_rounds
        return server_round in [cycle * rounds // cycles for cycle in range(1, cycles + 1)]

    def choose_local(self, models: Sequence[PretrainedModel], mean: Weights) -> bool:
        """Return whether the clients' own models teach, by ``late-teacher``; see ``own_models_win`` for the vote."""
        chosen = self.config.late.teacher
        local = own_models_win(self, models, mean) if chosen == "vote" else chosen == "local"
        self.record(**{"late/teacher": "local" if local else "mean"})
        return local

    def fine_tune_again(self, models: Sequence[PretrainedModel], mean: Weights) -> Weights:
        """Return the mean of a second fine-tuning from ``mean``, which costs as much as the distillation would.

        If it would not be longer than the warm-up of its learning rate, or fails, the result is ``mean``.
        """
        config, one = self.config, OwnTraining(_ANNEAL, 1)
        saved = self.generated_images(config) + self.images_of_steps(config, config.correction.steps)
        if config.checks_memorization:  # the models of the second fine-tuning are checked, too
            saved = max(0.0, saved - self.generated_images(config))
        steps = int(saved / sum(one.images(config, model.num_examples) for model in models))
        if steps <= config.training.warmup_steps:
            steps = 0
        self.record(**{"late/anneal_steps": steps})
        if steps == 0:
            return mean
        try:
            annealed = self._annealing(steps, mean).run()
        except TooFewRepliesError as error:
            logger.warning("%s; the result is the mean of the first fine-tuning", error)
            return mean
        return weights_module.weighted_mean((model.load(), model.num_examples) for model in annealed)

    def _annealing(self, steps: int, mean: Weights | None) -> ModelCollection:
        return ModelCollection(self, OwnTraining(_ANNEAL, steps, {_STEPS: steps}), mean)
