"""FedPhD: Federated Pruning with Hierarchical Learning of Diffusion Models.

Qianyu Long, Qiyuan Wang, Christos Anagnostopoulos, Daning Bi. 2025. https://arxiv.org/abs/2507.06449.

    SH(q)      2 - ||q - q*||_2 of a distribution q of labels; q* is uniform
    Round      each sampled client i draws an edge, P(e) ~ max(c SH(q_e + q_i) - n_e, 0) + 1e-8, all of them by the
               statistics at the start of the round;  w_i <- K local steps on L(.; D_i) from w_e
    Edge       w_e <- sum n_i w_i / sum n_i over its clients of the round; without any, w_e stays
               q_e, n_e <- pooled with those of its clients
    Cloud      every G rounds  w <- sum_e p_e w_e / sum_e p_e,  p_e = n + a SH(q_e);  w_e <- w;  q_e, n_e restart
    Pruning    once, of w: a share of the channels leaves each group of layers; all later rounds have the small model
               mode A: of the initial weights, before round 1;   mode B: after a number of sparse rounds, in which
               clients add lambda sum_l sum_k ||W_l[k]||_2 over layers l and their output channels k

Symbols: q_i -> label counts of client i, q_e, n_e, n -> ``hierarchy.edges.EdgeStatistics`` (its counts, their sum, the
edge's images in its latest round with clients), c -> edge-homogeneity N, a -> cloud-homogeneity N, G -> cloud-every,
E -> num-edges, lambda -> prune-penalty, w_e -> ``edge_models``, N -> the clients' images, w -> the global weights.
Clients reveal their label counts to the server, which plays edges and cloud.

Deviations: q_e + q_i pools counts. c = N / 5 and a = N are the authors' for CIFAR-10, with 20 to 40 % of the clients in
a round; our default c = N also acts with all of them. Their b is 0.
An edge without clients since the last merge has no part in the merge. In their code its statistics are uniform, so that
it has the highest score, and pulls the result back to the old model [our choice].
Their rounds count from 0, and they merge after the first one; here the merges follow on the rounds G, 2 G, ..., and on
the round of the pruning. After every other round, the last one included, the global weights are the merge at that time,
which no edge gets: losses and samples mean the same in all rounds, and no round after the last merge is lost.
Their sparse penalty is the sum of the norms of whole tensors; ours is by output channel [our choice: pruning removes
channels]. Their round counter restarts at the pruning in mode B, so that batches and noise repeat; ours does not.
Their code has one Adam for all clients, here each training has its own. With one edge there is no choice, and clients
reveal nothing. A client whose counts are not known chooses by q_e alone, and an edge of such clients alone has the
lowest SH, 1 [our choice].
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from flwr.serverapp import Grid
from torch import Tensor, nn

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.diffusion.pruning import channel_norms, check_prunable, kept_shares, prunable_weights, prune
from fedddpm_app.federation.architecture import Reshape
from fedddpm_app.federation.cost import Cost
from fedddpm_app.federation.messages.label_counts import LABEL_COUNTS, check_label_counts
from fedddpm_app.federation.messages.records import NUM_EXAMPLES
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.federation.rounds.exchanged import Exchanged
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.hierarchy.edges import EdgeStatistics
from fedddpm_app.progress import note
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction
from fedddpm_app.training.hooks import TrainingHook
from fedddpm_app.training.task import Batch
from fedddpm_app.weights import RunningMean, Weights

# ---- the client half -------------------------------------------------------------------------


class FedPhDHook(TrainingHook):
    """Adds the sparse penalty in the rounds up to the pruning."""

    _layers: Sequence[Tensor] = ()

    @classmethod
    def why_not_private(cls, config: Config) -> str:
        """Return that the penalty, which is a part of the loss, would be clipped away."""
        return "its penalty is added to the loss of a whole batch, not to that of an image"

    def on_start(self, model: nn.Module) -> None:
        """Find the layers that the penalty is for."""
        if self.config.prune.is_sparse_round(self.round.server_round):
            self._layers = prunable_weights(model)

    def add_to_loss(self, loss: Tensor, model: nn.Module, batch: Batch) -> Tensor:
        """Add lambda sum_l sum_k ||W_l[k]||_2."""
        return loss + self.config.prune.penalty * channel_norms(self._layers) if self._layers else loss


def report_labels(request: ActionRequest) -> ActionAnswer:
    """Reveal the number of training images of each class."""
    counts = request.task.class_counts(request.partition_id)
    if not counts:
        raise ConfigError(_needs_labels(request.config))
    return ActionAnswer({LABEL_COUNTS: counts, NUM_EXAMPLES: sum(counts)})


def _needs_labels(config: Config) -> str:
    return (
        f"num-edges = {config.hierarchy.num_edges}: a client chooses its edge by its labels, which the data lack: use "
        "data with labels (simulate: class_counts), or num-edges = 1."
    )


# ---- the server half -------------------------------------------------------------------------


class FedPhD(FederatedStrategy):
    """FedPhD's server half: edges and cloud.

    Attributes
    ----------
    label_counts : dict of int to list of int
        By client, its images per class, as far as they are known.
    statistics : dict
        The state of the ``EdgeStatistics``.
    edge_models : dict of int to Weights
        By edge, w_e of each edge that had clients since the last merge.
    cloud_model : Weights
        The result of the last merge, from which the other edges start; empty if it is the global weights.
    edge_of : dict of int to int
        By client of the round, its edge.
    """

    hook = FedPhDHook
    uses_keys = ("num-edges", "cloud-every", "edge-homogeneity", "cloud-homogeneity", "prune-")
    client_actions: ClassVar[Mapping[str, ClientAction]] = {
        "report_labels": ClientAction(report_labels, metrics=(NUM_EXAMPLES,))
    }
    state_attributes = ("label_counts", "statistics", "edge_models", "cloud_model")
    own_aggregation = "each edge is the mean of its clients, and the cloud weighs the edges by their homogeneity"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hierarchy, data = self.config.hierarchy, self.config.data
        self.label_counts: dict[int, list[int]] = {}
        self.statistics = EdgeStatistics.fresh(hierarchy.num_edges, data.num_classes).state()
        self.edge_models: dict[int, Weights] = {}
        self.cloud_model: Weights = {}
        self.edge_of: dict[int, int] = {}

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Refuse edges without clients, and a pruning after which no round follows."""
        super().check_config(config)
        edges, clients = config.hierarchy.num_edges, config.data.num_clients
        if edges > clients:
            raise ConfigError(f"num-edges = {edges} is more than num-clients = {clients}: use at most {clients}.")
        if config.prune.ratio and config.prune.round >= config.run.num_rounds:
            raise ConfigError(
                f"prune-round = {config.prune.round} leaves no round to train the pruned model, as num-rounds = "
                f"{config.run.num_rounds}: use at most {config.run.num_rounds - 1}, or prune-ratio = 0.0."
            )

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the keys of a choice that does not exist, and those of a pruning that does not happen."""
        unused = super().keys_without_effect(config)
        if config.hierarchy.num_edges == 1:
            unused |= dict.fromkeys(("cloud-every", "edge-homogeneity", "cloud-homogeneity"), "num-edges = 1")
        if config.prune.ratio == 0:
            unused |= dict.fromkeys(("prune-round", "prune-penalty"), "prune-ratio = 0.0")
        elif config.prune.round == 0:
            unused["prune-penalty"] = "prune-round = 0, so no round is before the pruning"
        return unused

    @classmethod
    def cost(cls, config: Config, sizes: Sequence[int]) -> Cost:
        """Count steps and models after the pruning by their share of the full model's operations and parameters."""
        cost, rounds = super().cost(config, sizes), config.run.num_rounds
        if config.prune.ratio == 0:
            return cost
        before, kept = config.prune.round, kept_shares(config.unet, config.data, config.prune.ratio)
        parameters, compute = ((before + share * (rounds - before)) / rounds for share in kept)
        return Cost(cost.steps * compute, cost.models_up * parameters, cost.models_down * parameters)

    @classmethod
    def compute_of_round(cls, config: Config, server_round: int) -> float:
        """Return the share of the operations that a pruning keeps, after it."""
        if config.prune.ratio == 0 or server_round <= config.prune.round:
            return 1.0
        return kept_shares(config.unet, config.data, config.prune.ratio)[1]

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Check that model and data can be used, and ask the clients for their label counts."""
        if self.config.prune.ratio:
            check_prunable(self.task.create_model())
        if self.config.hierarchy.num_edges > 1:
            if self.task.client_sizes() and not self.task.class_counts(0):
                raise ConfigError(_needs_labels(self.config))
            note('algorithm = "fedphd": every client reveals to the server how many images of each class it has')
            self._ask_for_labels(self.clients.present())
            if not self.label_counts:
                raise ConfigError(f"no client has revealed its label counts; {_needs_labels(self.config)}")
        return weights

    def exchanged(self, server_round: int, partitions: Sequence[int]) -> Mapping[int, Exchanged]:
        """Draw the clients' edges, and return their models."""
        self.edge_of = self._draw_edges(server_round, partitions)
        starts = {p: self.edge_models.get(edge, self.cloud_model) for p, edge in self.edge_of.items()}
        return {partition: Exchanged(start=start) for partition, start in starts.items() if start}

    def aggregate(self, server_round: int, replies: Iterator[Reply]) -> Weights:
        """Average at the edges, and return the merge of the edges; in a round with a merge, all edges get it."""
        means: dict[int, RunningMean] = {}
        joined: dict[int, tuple[Sequence[int], int]] = {}
        for reply in replies:
            means.setdefault(self.edge_of[reply.partition_id], RunningMean()).fold(reply.load(), reply.num_examples)
            joined[reply.partition_id] = (self._counts_of(reply.partition_id), reply.num_examples)
        statistics = EdgeStatistics.from_state(self.statistics).after_round(joined, self.edge_of)
        models = self.edge_models | {edge: mean.result() for edge, mean in means.items()}
        p = statistics.cloud_weights(self._images(self.config.hierarchy.cloud_homogeneity))
        merged = weights_module.weighted_mean((models[edge], p[edge]) for edge in sorted(models))
        self._record(server_round, joined, statistics, p)
        if self.merges(server_round):
            statistics = EdgeStatistics.fresh(*statistics.counts.shape)
            self.edge_models, self.cloud_model = {}, {}
        else:
            self.edge_models, self.cloud_model = models, self.cloud_model or self.global_weights
        self.statistics = statistics.state()
        return merged

    def change_architecture(self, server_round: int, weights: Weights) -> Reshape | None:
        """Prune once; a line of ``stats.jsonl`` has the sizes before and after."""
        ratio = self.config.prune.ratio
        if not ratio or server_round != self.config.prune.round:
            return None
        pruning = prune(self.task.create_model(), weights, ratio)
        self.recorder.append({"phase": "prune", "round": server_round, **pruning.report()})
        note(f"round {server_round}: {pruning.describe(ratio)}")
        return pruning.apply

    def merges(self, server_round: int) -> bool:
        """Return whether all edges get the merge of a round."""
        prunes = self.config.prune.ratio > 0 and server_round == self.config.prune.round
        return server_round % self.config.hierarchy.cloud_every == 0 or prunes

    def _draw_edges(self, server_round: int, partitions: Sequence[int]) -> dict[int, int]:
        """Return an edge for each client of the round, by the statistics at its start."""
        if self.config.hierarchy.num_edges == 1:
            return dict.fromkeys(partitions, 0)
        self._ask_for_labels([partition for partition in partitions if partition not in self.label_counts])
        statistics = EdgeStatistics.from_state(self.statistics)
        c, chosen = self._images(self.config.hierarchy.edge_homogeneity), {}
        for partition in partitions:
            generator = np.random.default_rng(derive_seed(self.config.run.seed, "fedphd-edge", server_round, partition))
            probabilities = statistics.probabilities(self._counts_of(partition), c)
            chosen[partition] = int(generator.choice(len(probabilities), p=probabilities))
        return chosen

    def _ask_for_labels(self, partitions: Sequence[int]) -> None:
        """Ask clients for their label counts; one that does not answer is asked again when it is sampled."""
        if partitions:
            check = functools.partial(check_label_counts, self.config.data.num_classes)
            replies = self.ask_clients("report_labels", partitions=partitions, check=check).answers()
            found: dict[int, Any] = {reply.partition_id: reply.metrics[LABEL_COUNTS] for reply in replies}
            self.label_counts = self.label_counts | {p: [*counts] for p, counts in found.items()}

    def _counts_of(self, partition: int) -> list[int]:
        return self.label_counts.get(partition, [0] * self.config.data.num_classes)

    def _images(self, share: float) -> float:
        """Return a share of N in images; without any known count, N is 1."""
        return share * (sum(map(sum, self.label_counts.values())) or 1)

    def _record(
        self, server_round: int, joined: Mapping[int, object], statistics: EdgeStatistics, p: Mapping[int, float]
    ) -> None:
        """Record the edge of each client, SH of each edge, and the weights of the merge."""
        merged = self.merges(server_round) or server_round == self.config.run.num_rounds
        self.record(
            **{
                "edge/of_client": {str(partition): self.edge_of[partition] for partition in joined},
                "edge/homogeneity": statistics.scores(),
                "cloud/weights": {str(edge): weight for edge, weight in p.items()},
                "cloud/merged": merged,
            }
        )
