"""PDFed: Privacy-Preserving and Decentralized Asynchronous Federated Learning for Diffusion Models.

Kar Balan, Andrew Gilbert, John Collomosse. 2024. https://arxiv.org/abs/2409.18245 (CVMP 2024).

    Start      every peer i has the same model w;  w_i <- K local steps on L(.; D_i) from w
    Submit     w_i, with a small set of samples of w_i
    Score      peer i scores the samples s of each submission on its own images:
               Q_i(s) = (FD + 1000 V_C V_A R_C) / 2, see ``peers.score``
    Choose     s* <- argmin_s a r_i(s) + (1 - a) sum_v n_v r_v(s) / sum_v n_v, over the votes so far of v != i, except
               that of the author of s, with r_v(s) = Q_v(s) / mean_s' Q_v(s'), see ``peers.choice``
    Train on   w_i <- K local steps on L(.; D_i) from the model of s*, or (merge) from the mean of it and w_i;  submit
    Ledger     who joined, left, submitted, voted and chose; see ``peers.ledger``

Symbols: a -> pdfed-own-vote, n_v -> a voter's training images, V_C, V_A, R_C -> ``peers.novelty``, K -> local-steps,
the order of events -> pdfed-clock.

No peer waits for another one. The server is relay and ledger (``peers.relay``). A round of the run is as many
submissions as there are peers that train; faster peers submit more often, and only vote after ``num-rounds`` of them.
Deviations: the ledger is a hash-chained file in place of a blockchain, and the relay stores models in place of IPFS.
Embedder and verifier of the score are ours.
Our reading: the formula that weighs votes; a merge with equal weights, whose parent is then of another peer; candidates
are the latest submission of each peer; busy peers vote at their next turn, others at once; turns of the same moment are
simultaneous; each training has a new optimiser; dedup counts all matches so far anew for each training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from flwr.serverapp import Grid
from torch import Tensor

from fedddpm_app import progress
from fedddpm_app.auxiliary.sampler import AuxiliarySampler
from fedddpm_app.config import Config, ConfigError, check_sampler
from fedddpm_app.diffusion.images import to_unit_range
from fedddpm_app.diffusion.labels import balanced_labels
from fedddpm_app.diffusion.sampling import image_seeds, split_batches
from fedddpm_app.diffusion.unet import is_denoiser
from fedddpm_app.federation.cost import Cost
from fedddpm_app.federation.messages.records import ARRAYS, NUM_EXAMPLES
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.federation.messages.streaming import report_done
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.peers.cost import cost_of_peers, images_of_samples
from fedddpm_app.peers.dedup import images_to_leave_out
from fedddpm_app.peers.mail import MATCHED, NUMBER, SAMPLES, SCORE, SCORES, TRAIN
from fedddpm_app.peers.private import check_embedder, private_score
from fedddpm_app.peers.relay import Relay
from fedddpm_app.peers.report import report_round
from fedddpm_app.peers.votes import pack_scores
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
from fedddpm_app.training.hooks import TrainResult
from fedddpm_app.training.task import Subset, TrainingData
from fedddpm_app.weights import Weights

_IMAGES = "images"


# ---- the client half -------------------------------------------------------------------------


def score(request: ActionRequest) -> ActionAnswer:
    """Score the samples of submissions on the client's own images."""
    config, labels = request.config, labels_of_samples(request.config)
    own = private_score(config, request.task, request.partition_id)
    samples = [request.weights[f"{k}/{_IMAGES}"] for k in range(len(request.weights))]
    found = [own.score(to_unit_range(images), labels) for images in samples]
    if not config.pdfed.dedup:  # a client reveals no more than is needed
        found = [replace(each, matches=[]) for each in found]
    num_examples = len(request.task.train_data(request.partition_id))
    return ActionAnswer({NUM_EXAMPLES: num_examples}, {SCORES: pack_scores(found, config.pdfed.samples)})


def train_and_submit(request: ActionRequest) -> ActionAnswer:
    """Train the received weights on the client's own images; return them with samples."""
    result, num_examples = train_peer(request)
    number, config = request.values[NUMBER], request.config
    seeds = image_seeds(config.run.seed, "peer-samples", config.pdfed.samples, request.partition_id, int(str(number)))
    size = min(config.auxiliary.batch_size, len(seeds))
    sampler = AuxiliarySampler(config, request.trainer.model)
    images = torch.cat([*sampler.sample(result.weights, split_batches(seeds, labels_of_samples(config), size))])
    metrics = {**result.metrics(), NUM_EXAMPLES: num_examples}
    return ActionAnswer(metrics, {ARRAYS: result.weights, SAMPLES: {_IMAGES: images}})


def train_peer(request: ActionRequest) -> tuple[TrainResult, int]:
    """Train the received weights; return the result, and the number of images that were trained on."""
    values: Any = request.values
    number, partition, config = values[NUMBER], request.partition_id, request.config
    data: TrainingData = request.task.train_data(partition)
    if left_out := images_to_leave_out([values[MATCHED]], len(data)):
        kept = torch.ones(len(data), dtype=torch.bool)
        kept[left_out] = False
        data = Subset(data, kept.nonzero().flatten())
    result = request.trainer.train(
        request.weights,
        data,
        steps=request.task.local_steps(partition),
        seed=derive_seed(config.run.seed, "local-train", number, partition),
        on_report=progress.reporter("train", partition, number, config.run.num_rounds),
    )
    return result, len(data)


def labels_of_samples(config: Config) -> Tensor | None:
    """Return the classes of a submission's samples; None for a model without classes."""
    return balanced_labels(config.pdfed.samples, config.data.num_classes) if config.data.class_conditional else None


# ---- the server half -------------------------------------------------------------------------


class PDFed(FederatedStrategy):
    """Runs the relay, a round at a time, and records what it knows.

    Attributes
    ----------
    relay : Relay
        The protocol.
    """

    key_prefix = "pdfed-"
    uses_keys = ("auxiliary-sampler", "auxiliary-batch-size", "inception-weights")
    client_actions: ClassVar[Mapping[str, ClientAction]] = {
        SCORE: ClientAction(score, metrics=(NUM_EXAMPLES,), records=(SCORES,), exact=True, sends_own=True),
        TRAIN: ClientAction(
            train_and_submit,
            metrics=(NUM_EXAMPLES, "loss", "final-loss", "steps"),
            records=(ARRAYS, SAMPLES),
            sends_own=True,
        ),
    }
    own_aggregation = "peers choose models, and nothing is aggregated"
    trains_on_clients = False
    evaluates_on_clients = False
    state_attributes = ("relay",)
    fixed_on_resume = ("num-rounds",)  # a peer that has reached it has already begun to vote on all submissions

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.relay = Relay(self, self.samples_like, self._count)
        self._submitted: list[Reply] = []

    @classmethod
    def has_global_model(cls, config: Config) -> bool:
        """Return False: every peer has its latest submission."""
        return False

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse runs in which nobody trains, or nobody can score."""
        super().check_config(config)
        pdfed, data, auxiliary = config.pdfed, config.data, config.auxiliary
        if pdfed.validators >= data.num_clients:
            raise ConfigError(
                f"pdfed-validators = {pdfed.validators} leaves no client to train, as num-clients = "
                f"{data.num_clients}: use at most {data.num_clients - 1}."
            )
        cls.check_scores(config)
        check_sampler(
            "auxiliary-sampler-steps", auxiliary.sampler, auxiliary.sampler_steps, config.diffusion.diffusion_steps
        )

    @classmethod
    def check_scores(cls, config: Config) -> None:
        """Refuse scores without held-out images, or without an embedder."""
        if config.data.held_out_fraction == 0:
            raise ConfigError(
                'held-out-fraction = 0: with algorithm = "pdfed" every peer scores samples against its held-out '
                "images; use held-out-fraction = 0.1."
            )
        check_embedder(config)

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the keys of rounds in which all wait for each other, and of a global model."""
        peers = f'the peers of algorithm = "{config.run.algorithm}" do not wait for each other'
        unused = super().keys_without_effect(config) | dict.fromkeys(("clients-per-round", "min-replies"), peers)
        unused["server-ema-decay"] = f'algorithm = "{config.run.algorithm}" has no global model'
        if config.transport.wire_dtype == "int8-delta":  # bf16 also rounds submissions
            unused["wire-dtype"] = "submissions are whole models, not differences"
        if config.pdfed.clock == "arrival":
            unused["pdfed-speed-spread"] = 'pdfed-clock = "arrival"'
        return unused

    @classmethod
    def averages(cls, config: Config) -> dict[str, tuple[int, str]]:
        """Return no moving average: submissions are the trained weights."""
        return {}

    @classmethod
    def total_steps(cls, config: Config, client_steps: int) -> int:
        """Return the share of the clients that train."""
        clients = config.run.clients_per_round or config.data.num_clients
        return client_steps * (config.data.num_clients - config.pdfed.validators) // clients

    @classmethod
    def cost(cls, config: Config, sizes: Sequence[int]) -> Cost:
        """Return the cost of trainings and of their samples, and the models; scoring images is not counted."""
        return cost_of_peers(config, sizes)

    def samples_like(self) -> Weights:
        """Return the shapes of a submission's samples: uint8 images, which cannot be out of range."""
        shape = (self.config.pdfed.samples, *self.config.data.image_shape)
        return {_IMAGES: torch.empty(shape, dtype=torch.uint8, device="meta")}

    def check_model(self) -> None:
        """Raise ``ConfigError`` if the model cannot generate samples."""
        model = self.task.create_model()
        if not is_denoiser(model):
            raise ConfigError(
                f'algorithm = "{self.config.run.algorithm}" scores samples, but a {type(model).__name__} is not a '
                "UNet2DModel, so it cannot generate any: override the client actions score and train_and_submit, "
                "samples_like and check_model."
            )

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Check the model, and start the ledger."""
        self.check_model()
        if self.config.pdfed.dedup:
            progress.note(
                "pdfed-dedup = true: every client reveals which of its images samples match, by their numbers"
            )
        self.relay.begin()
        return weights

    def after_aggregation(self, server_round: int, weights: Weights) -> Weights:
        """Go on with the protocol for a round; return the model of the submission with the best votes."""
        self._submitted = []
        with self.accounting.timed("train"):
            self.relay.run_round(server_round)
        self.train_loss, values = report_round(self.relay, self._submitted)
        self.record(**values)
        best = self.relay.board.best()
        return self.client_models[best.peer] if best else self.initial_weights

    def _count(self, reply: Reply) -> None:
        """Count the compute of a submission, whose steps are checked."""
        config, steps = self.config, int(reply.number("steps"))
        self.accounting.images += self.hook.training_images(config, reply.num_examples, steps, is_first=False)
        self.accounting.images += images_of_samples(config)
        self._submitted.append(replace(reply, payloads={}))
        report_done(self.grid.run, reply, "train", self.round_log.server_round, config.run.num_rounds)
