"""A federation in one process, for any model and loss: for notebooks, property tests and external checks.

``simulate`` runs the same ClientApp handlers, strategies and worker as `flwr run`, but through an in-process grid and
with plain defaults: every client in every round, constant learning rates, no warm-up, no clipping, no limit on updates
and no moving averages.
"""

import copy
import inspect
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.client.handlers import create_client_app
from fedddpm_app.client.setup import ClientSetup
from fedddpm_app.client.worker import Worker
from fedddpm_app.config import ConfigError, Scalar
from fedddpm_app.device import resolve_device
from fedddpm_app.federation.messages.records import to_arrays, to_weights
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.inprocess.hyperparameters import configure
from fedddpm_app.inprocess.recorder import MemoryRecorder
from fedddpm_app.inprocess.task import InMemoryTask, as_training_data, on_device
from fedddpm_app.training.task import Batch, LossFn, TrainingData
from fedddpm_app.weights import Weights, snapshot

_PLAIN: dict[str, Scalar] = {
    "warmup-steps": 0,
    "gradient-clip": 0.0,
    "weight-decay": 0.0,
    "learning-rate-schedule": "constant",
    "pretrain-learning-rate-schedule": "constant",
    "correction-learning-rate-schedule": "constant",
    "correction-batch-size": 0,
    "feddyn-alpha": 1.0,
    "moon-representation": "",
    "late-teacher": "local",
    "prune-ratio": 0.0,
    "held-out-fraction": 0.0,
    "ema-decay": 0.0,
    "server-ema-decay": 0.0,
    "device": "cpu",
    "node-timeout": 1.0,
    "transport": "flat",
    "max-update-norm": "",
}


def simulate(
    algorithm: str | type[FederatedStrategy],
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    client_datasets: Sequence[Any],
    rounds: int,
    local_steps: int | Sequence[int],
    lr: float,
    optimizer: str = "sgd",
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    *,
    batch_size: int | None = None,
    auxiliary_data: Any = None,
    class_counts: Sequence[Sequence[int]] | None = None,
    **hyper: Scalar,
) -> tuple[Weights, list[dict[str, Any]]]:
    """Train ``model`` with a federated algorithm in this process.

    Parameters
    ----------
    algorithm : str or type
        A name of the registry, ``"my_module:MyStrategy"``, or a strategy class.
    model : nn.Module
        The initial model; it is copied.
    loss_fn : callable
        ``(model, batch) -> scalar``; a loss that draws random numbers takes a further argument named ``generator``.
        The loss should be a mean over the batch.
    client_datasets : sequence
        One per client, see ``as_training_data``: a tensor (N, ...), a tuple or dict of tensors with the same N, or
        anything with a length and examples by index.
    rounds : int
        Federated rounds.
    local_steps : int or sequence of int
        Optimiser steps per client and round; a sequence holds one number for each client.
    lr : float
        Local learning rate; also the correction's and pretraining's, unless ``correction_learning_rate`` or
        ``pretrain_learning_rate`` is given.
    optimizer : {"sgd", "adam", "adamw"}
        The local optimiser.
    seed : int
        The seed of all random choices.
    dtype : torch.dtype
        float64 or float32, for the model and for floating-point data.
    batch_size : int, optional
        None is the full batch. A batch larger than a client's data continues with its examples in a new order.
    auxiliary_data : optional
        D_aux for ``fedddpm``, ``fedddpm-plus`` and ``aux-only`` (models that generate D_aux themselves teach in the
        other algorithms), in a form of ``client_datasets``. A model that is not
        a diffusion model cannot generate D_aux. It is not needed with ``correction_steps=0`` or without corrections.
    class_counts : sequence of sequence of int, optional
        For each client its examples per class, which ``fedphd`` uses.
    **hyper
        Any run-config key with underscores; the prefix of the algorithm may be left out (``mu``, ``alpha``,
        ``option``, ``window``). For your own algorithm, other names become ``config.run.options``.

    Returns
    -------
    weights : dict of str to Tensor
        The final global weights, in ``dtype``, on the CPU.
    history : list of dict
        One dict per round with the keys of ``stats.jsonl``: ``round``, ``clients`` (the sampled clients),
        ``train/client_loss`` (of the clients that answered), ``train/loss``, ...

    Raises
    ------
    ConfigError
        For a key that does not exist or a value that cannot be used; the message names it.
    RoundFailedError
        When no client could train.
    """
    _check_arguments(model, loss_fn, client_datasets, optimizer, dtype)
    data = [as_training_data(dataset, dtype, f"client_datasets[{i}]") for i, dataset in enumerate(client_datasets)]
    steps = _steps_of_each(local_steps, len(data))
    rates: dict[str, Scalar] = {"pretrain-learning-rate": float(lr), "correction-learning-rate": float(lr)}
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Scalar] = {
            "num-rounds": _whole("rounds", rounds),
            "num-clients": len(data),
            "local-steps": max(steps),
            "learning-rate": float(lr),
            "optimizer": optimizer.lower(),
            "seed": _whole("seed", seed),
            "batch-size": _whole("batch_size", batch_size or 0),
            "state-dir": folder,
            **_classes_of(class_counts, data),
        }
        kind, config = configure(algorithm, _PLAIN | rates, given, hyper)
        device = resolve_device(config.run.device)
        placed = [on_device(part, device) for part in data]
        task = InMemoryTask(
            copy.deepcopy(model).to("cpu", dtype), _with_generator(loss_fn), placed, steps, class_counts
        )
        recorder = MemoryRecorder(Path(folder))
        strategy = kind(config, recorder, task)
        if auxiliary_data is not None:
            if not isinstance(strategy, FedDDPM):
                raise ConfigError(f'algorithm = "{algorithm}" does not use auxiliary_data: leave it out.')
            strategy.auxiliary_data = on_device(as_training_data(auxiliary_data, dtype, "auxiliary_data"), device)
        worker = Worker(config, task)
        setup = ClientSetup(config, kind, lambda: worker)
        grid = InProcessGrid(create_client_app(lambda _: setup), len(data), {})
        with _quiet(), grid.blame_clients():
            result = strategy.start(grid, to_arrays(snapshot(task.create_model())), num_rounds=config.run.num_rounds)
    return to_weights(result.arrays), [row for row in recorder.stats if row["phase"] == "round"]


def _check_arguments(
    model: nn.Module,
    loss_fn: Callable[..., Tensor],
    client_datasets: Sequence[Any],
    optimizer: str,
    dtype: torch.dtype,
) -> None:
    if not isinstance(model, nn.Module) or not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"model = {model!r}: give a torch.nn.Module with parameters to train.")
    if dtype not in (torch.float32, torch.float64):
        raise ConfigError(f"dtype = {dtype!r}: use torch.float64 or torch.float32.")
    if not callable(loss_fn):
        raise ConfigError(f"loss_fn = {loss_fn!r}: give a function (model, batch) -> scalar.")
    if not isinstance(optimizer, str):
        raise ConfigError(f'optimizer = {optimizer!r}: give "sgd", "adam" or "adamw".')
    if isinstance(client_datasets, Mapping) or not hasattr(client_datasets, "__len__") or not len(client_datasets):
        raise ConfigError("client_datasets has no clients: give a list with one data set for each client.")


def _whole(name: str, value: Any) -> int:
    """Return a whole number, also if it is a float, a text or a number of NumPy."""
    try:
        if isinstance(value, str) or value == int(value):
            return int(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(f"{name} = {value!r}: give a whole number.")


def _steps_of_each(local_steps: int | Sequence[int], num_clients: int) -> list[int]:
    steps: list[Any] = [local_steps] * num_clients
    if isinstance(local_steps, Sequence | np.ndarray):
        steps = list(local_steps)
    if len(steps) != num_clients or any(_whole("local_steps", s) < 1 for s in steps):
        raise ConfigError(
            f"local_steps = {local_steps}: give a whole number >= 1, or one such number for each of {num_clients} "
            "clients."
        )
    return [int(s) for s in steps]


def _classes_of(class_counts: Sequence[Sequence[int]] | None, data: Sequence[TrainingData]) -> dict[str, Scalar]:
    """Return the number of classes, after a check of the counts; empty without counts."""
    if class_counts is None:
        return {}
    sums, lengths = [sum(counts) for counts in class_counts], {len(counts) for counts in class_counts}
    if sums != [len(part) for part in data] or len(lengths) != 1:
        raise ConfigError(
            f"class_counts = {class_counts!r}: give one list for each of {len(data)} clients, all with one number per "
            "class, which add up to the client's examples."
        )
    return {"num-classes": lengths.pop()}


def _with_generator(loss_fn: Callable[..., Tensor]) -> LossFn:
    """Return a checked loss that takes a generator, for a ``loss_fn`` with or without such an argument."""
    takes_generator = "generator" in inspect.signature(loss_fn).parameters

    def loss(model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        value = loss_fn(model, batch, generator=generator) if takes_generator else loss_fn(model, batch)
        if not (isinstance(value, Tensor) and value.numel() == 1):
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"loss_fn returned {given}: return a tensor of one number, such as a mean over the batch."
            )
        return value.reshape(())

    return loss


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Flower's log lines below errors in the body; it writes one per step of every round."""
    flower = logging.getLogger("flwr")
    level = flower.level
    flower.setLevel(logging.ERROR)
    try:
        yield
    finally:
        flower.setLevel(level)
