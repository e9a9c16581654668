"""A client's computation in plain torch: it takes weights, and returns weights and metrics.

A process keeps one ``Worker`` per run config, with its model, optimiser buffers and data, for all clients
and rounds (Ray reuses its actors). No state of one client reaches the next client: see ``Trainer``.
"""

import os
import socket
import types
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch

from fedddpm_app import progress
from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config
from fedddpm_app.device import cpu_threads
from fedddpm_app.seeding import derive_seed
from fedddpm_app.shapes import fits
from fedddpm_app.training.actions import ActionAnswer, ActionRequest, ClientAction, Value
from fedddpm_app.training.hooks import TrainingHook, TrainResult
from fedddpm_app.training.privacy_ledger import PrivacyLedger, begin
from fedddpm_app.training.task import Task
from fedddpm_app.training.trainer import create_trainer
from fedddpm_app.weights import Weights


@dataclass(frozen=True)
class LocalResult:
    """A client's trained weights, and the number of training examples."""

    training: TrainResult
    num_examples: int


class Worker:
    """Trains and evaluates a task's model on any client's data.

    Parameters
    ----------
    config : Config
        The run's config.
    task : Task
        Model, loss and data.
    """

    def __init__(self, config: Config, task: Task) -> None:
        self.config = config
        self.task = task
        self.trainer = create_trainer(config, task)

    def train(self, hook: TrainingHook, ledger: PrivacyLedger | None = None) -> LocalResult:
        """Train one client's round; ``hook`` is the algorithm's hook for that round.

        ``ledger`` is where a private training writes what it spends.
        """
        partition_id, server_round = hook.round.partition_id, hook.round.server_round
        data, seed, run = self.task.train_data(partition_id), self.config.run.seed, self.config.run
        steps = self.task.local_steps(partition_id)
        planned = run.num_rounds * steps
        privacy = begin(self.config, "train", ledger, num_examples=len(data), steps=steps, planned=planned)
        self._fit(hook.round.global_weights)
        with self._working("local-train-hook", server_round, partition_id), closing(hook):
            result = self.trainer.train(
                hook.start_weights(),
                data,
                steps=steps,
                seed=derive_seed(seed, "local-train", server_round, partition_id),
                hook=hook,
                privacy=privacy,
                on_report=progress.reporter("train", partition_id, server_round, self.config.run.num_rounds),
            )
            gradient_seed = derive_seed(seed, "full-gradient", server_round, partition_id)
            hook.on_end(result, lambda weights: self.trainer.full_gradient(weights, data, gradient_seed))
        return LocalResult(result, len(data))

    def evaluate(self, hook: TrainingHook) -> tuple[float, int]:
        """Return the loss of the client's weights on its held-out examples, and their number."""
        self._fit(hook.round.global_weights)
        with self._working("local-evaluate-hook", hook.round.server_round, hook.round.partition_id):
            weights_module.load_into(self.trainer.model, hook.start_weights())
            return self.task.held_out_loss(self.trainer.model, hook.round.partition_id)

    def act(
        self,
        action: ClientAction,
        partition_id: int,
        server_round: int,
        weights: Weights,
        values: Mapping[str, Value],
        state: Mapping[str, Weights] = types.MappingProxyType({}),
        ledger: PrivacyLedger | None = None,
    ) -> ActionAnswer:
        """Run one of the strategy's client actions; see ``ActionRequest``."""
        self._fit(weights)
        given = (partition_id, server_round, weights, values, state, ledger)
        request = ActionRequest(self.config, self.task, self.trainer, *given)
        with self._working("client-action", server_round, partition_id):
            return action.run(request)

    @contextmanager
    def _working(self, purpose: str, server_round: int, partition_id: int) -> Iterator[None]:
        """Use the threads of a client, and seed torch's random numbers for the code of algorithms, then restore them.

        Without a seed of its own, such code would get other numbers on another process, or after other clients.
        """
        device = self.trainer.device
        with (
            cpu_threads(self.config.run.client_threads),
            torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        ):
            known = max(0, server_round)  # a message may name any
            torch.manual_seed(derive_seed(self.config.run.seed, purpose, known, partition_id))
            yield

    def _fit(self, weights: Weights) -> None:
        """Train a model of the shapes of the received weights from now on; weights of another kind change nothing."""
        model = self.trainer.model
        if weights.keys() == model.state_dict().keys() and not fits(model, weights):
            self.trainer = create_trainer(self.config, self.task, weights)


def this_process() -> int:
    """Return a number that identifies this process on this host; two processes rarely have the same number."""
    return zlib.crc32(f"{socket.gethostname()}:{os.getpid()}".encode())
