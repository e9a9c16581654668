"""A federation without training, so that a round consists of the transport: Flower's FedAvg and ours.

The clients turn the received weights into tensors and send them back. A process that runs one simulated federation
calls ``run_simulated``; a deployment uses ``server_app`` and ``client_app``.
"""

import itertools
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks.models import LARGE, MODELS
from fedddpm_app.algorithms.fedavg import FederatedAveraging
from fedddpm_app.client.forwarding import ForwardingClientApp
from fedddpm_app.client.handlers import create_client_app
from fedddpm_app.client.setup import ClientSetup
from fedddpm_app.client.worker import LocalResult
from fedddpm_app.config import Config, default_run_config, load_config
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.messages.records import to_arrays
from fedddpm_app.inprocess.recorder import MemoryRecorder
from fedddpm_app.recording.checkpoints import CheckpointWriter
from fedddpm_app.training.hooks import TrainingHook, TrainResult
from fedddpm_app.training.privacy_ledger import PrivacyLedger
from fedddpm_app.weights import Weights, num_bytes, snapshot

VARIABLE = "FEDDDPM_ECHO"
STOCK = "stock"


@dataclass(frozen=True)
class Echo:
    """One federation: ``kind`` is ``stock`` or a value of the ``transport`` key; ``result`` is the results' file.

    With ``checkpoints``, ours writes one after each round, into ``scratch``.
    """

    kind: str
    clients: int
    rounds: int
    result: str
    scratch: str
    wire_dtype: str = "fp32"
    clients_per_round: int = 0
    model: str = LARGE
    checkpoints: bool = False

    def to_environment(self) -> dict[str, str]:
        """Return the environment variable that the apps read this object from."""
        return {VARIABLE: json.dumps(asdict(self))}

    @property
    def config(self) -> Config:
        """The run config."""
        settings = MODELS[self.model] | {
            "num-clients": self.clients,
            "clients-per-round": self.clients_per_round,
            "num-rounds": self.rounds,
            "held-out-fraction": 0.0,
            "algorithm": "fedavg",
            "transport": "auto" if self.kind == STOCK else self.kind,
            "wire-dtype": self.wire_dtype,
            "node-timeout": 300.0,
        }
        return load_config(default_run_config() | settings)


class Echoing:
    """Replaces the worker: its training returns the received weights."""

    def train(self, hook: TrainingHook, ledger: PrivacyLedger | None = None) -> LocalResult:
        """Return the weights that training would start from."""
        return LocalResult(TrainResult(hook.start_weights(), 0.0, 0.0, 1, 0.0), 100)


def echo_from_environment() -> Echo:
    """Return the federation of this process, from the environment."""
    return Echo(**json.loads(os.environ[VARIABLE]))


class Strict(FedAvg):
    """Flower's FedAvg, which here stops at a client's error, because an error would make a round look fast."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Raise for errors, then aggregate."""
        replies = list(replies)
        for reply in replies:
            if reply.has_error():
                raise RuntimeError(f"a client failed: {reply.error.reason}")
        return super().aggregate_train(server_round, replies)


class CheckpointRecorder(MemoryRecorder):
    """Writes the checkpoints of a run, and keeps its other records in memory."""

    def __init__(self, scratch: Path) -> None:
        super().__init__(scratch)
        self._writer = CheckpointWriter(scratch)

    def save_checkpoint(
        self,
        server_round: int,
        models: Mapping[str, Weights],
        state: Mapping[str, object],
        newest: int,
        is_permanent: Callable[[int], bool],
    ) -> None:
        """Write a checkpoint in the background."""
        self._writer.save(server_round, models, state, {}, newest, is_permanent)

    def check_checkpoint(self) -> None:
        """Wait for the last checkpoint, and raise its error."""
        self._writer.check()


server_app = ServerApp()


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    """Run the rounds; write the seconds per round, and this process's memory before the rounds and at its peak."""
    echo = echo_from_environment()
    weights = snapshot(DiffusionTask(echo.config).create_model())
    stamps: list[float] = []

    def stamp(server_round: int, arrays: ArrayRecord) -> None:
        stamps.append(time.perf_counter())

    idle, began = psutil.Process().memory_info().rss, time.perf_counter()
    _reset_peak()
    if echo.kind == STOCK:
        everyone = {"min_train_nodes": echo.clients, "min_available_nodes": echo.clients, "fraction_evaluate": 0.0}
        Strict(**everyone).start(grid, ArrayRecord(dict(weights)), num_rounds=echo.rounds, evaluate_fn=stamp)
        moved = 0.0
    else:
        recorder = (CheckpointRecorder if echo.checkpoints else MemoryRecorder)(Path(echo.scratch))
        strategy = FederatedAveraging(echo.config, recorder, DiffusionTask(echo.config))
        strategy.start(grid, to_arrays(weights), num_rounds=echo.rounds, evaluate_fn=stamp)
        if strategy.clients.refusals:
            raise RuntimeError(f"clients failed: {strategy.clients.refusals}")
        moved = (strategy.accounting.bytes_up + strategy.accounting.bytes_down) / 1e6
    results = {
        "round_s": [after - before for before, after in itertools.pairwise(stamps)],
        "found_s": stamps[0] - began,
        "idle_mb": idle / 1e6,
        "peak_mb": _peak() / 1e6,
        "model_mb": num_bytes(weights) / 1e6,
        "moved_mb": moved,
    }
    Path(echo.result).write_text(json.dumps(results), encoding="utf-8")


stock_client_app = ClientApp()


@stock_client_app.train()
def echo_arrays(message: Message, context: Context) -> Message:
    """Turn Flower's arrays into tensors and back."""
    weights = message.content["arrays"].to_torch_state_dict()
    metrics = MetricRecord({"num-examples": 100, "loss": 0.0})
    return Message(RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics}), reply_to=message)


def set_up(context: Context) -> ClientSetup:
    """Return the setup of our handlers, with a worker that echoes."""
    worker: Any = Echoing()
    return ClientSetup(echo_from_environment().config, FederatedAveraging, lambda: worker)


def create_echo_app() -> ClientApp:
    """Create our ClientApp, in the process that answers the messages."""
    return create_client_app(set_up)


our_client_app = ForwardingClientApp("benchmarks.echo:create_echo_app")


def client_app() -> ClientApp:
    """Return the ClientApp of this process's federation."""
    return stock_client_app if echo_from_environment().kind == STOCK else our_client_app


def run_simulated() -> None:
    """Run the federation of the environment with Ray, with one CPU for each client."""
    echo = echo_from_environment()
    run_simulation(
        server_app,
        client_app(),
        num_supernodes=echo.clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )


def _reset_peak() -> None:
    """Reset the kernel's count of this process's peak memory (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _peak() -> float:
    """Return this process's peak memory in bytes."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(float(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
