"""A federation in this process, on any model and loss: for notebooks, property tests and outside checks.

``simulate`` drives the ClientApp's handlers, the strategies and the worker that `flwr run` drives, through an
in-process grid, with plain defaults: every client in every round, constant learning rate, no warm-up, no clipping.
"""

import copy
import difflib
import inspect
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedddpm_app.algorithms import REGISTRY, get_algorithm
from fedddpm_app.client import ClientSetup, create_client_app
from fedddpm_app.config import Config, ConfigError, Scalar, default_run_config, known_keys, load_config
from fedddpm_app.federation.base import FederatedDiffusion
from fedddpm_app.federation.inprocess import InProcessGrid
from fedddpm_app.federation.records import to_arrays, to_weights
from fedddpm_app.in_memory_task import InMemoryTask, as_training_data
from fedddpm_app.task import Example, LossFn, TrainingData
from fedddpm_app.weights import Weights, snapshot
from fedddpm_app.worker import Worker

_PLAIN: dict[str, Scalar] = {
    "warmup-steps": 0,
    "gradient-clip": 0.0,
    "weight-decay": 0.0,
    "learning-rate-schedule": "constant",
    "correction-learning-rate-schedule": "constant",
    "correction-batch-size": 0,
    "feddyn-alpha": 1.0,
    "moon-representation": "",
    "held-out-fraction": 0.0,
    "server-ema-decay": 0.0,
    "device": "cpu",
    "node-timeout": 1.0,
}
_PREFIXES = {
    "fedprox": "fedprox-",
    "scaffold": "scaffold-",
    "feddyn": "feddyn-",
    "moon": "moon-",
    "fedddpm-plus": "plus-",
}
_SYMBOLS = {  # the papers' names, and others in use
    "proximal-mu": "fedprox-mu",
    "eta-g": "scaffold-server-learning-rate",
    "server-lr": "scaffold-server-learning-rate",
    "tau": "moon-temperature",
    "delta": "plus-threshold",
}


def simulate(
    algorithm: str | type[FederatedDiffusion],
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
    **hyper: Scalar,
) -> tuple[Weights, list[dict[str, Any]]]:
    """Train ``model`` by a federated algorithm, in this process.

    Parameters
    ----------
    algorithm : str or type
        A name of the registry, ``"my_module:MyStrategy"``, or a strategy class.
    model : nn.Module
        Where training starts; it is copied.
    loss_fn : callable
        ``(model, batch) -> scalar``, or ``(model, batch, generator)`` for a loss that draws random numbers. It should
        be a mean over the batch.
    client_datasets : sequence
        One per client, see ``as_training_data``: a tensor (N, ...), a tuple or dict of tensors with the same N, or
        anything with a length and examples by index.
    rounds : int
        Federated rounds.
    local_steps : int or sequence of int
        Optimiser steps per client and round; a sequence gives each client its own.
    lr : float
        Local learning rate; also the correction's, unless ``correction_learning_rate`` is given.
    optimizer : {"sgd", "adam", "adamw"}
        The local optimiser.
    seed : int
        Of all random choices.
    dtype : torch.dtype
        Of the model and of floating-point data.
    batch_size : int, optional
        None is the full batch.
    auxiliary_data : optional
        D_aux for ``fedddpm``, ``fedddpm-plus`` and ``aux-only``, in a form of ``client_datasets``: a model that is no
        diffusion model cannot generate one. Not needed with ``correction_steps=0`` or while nothing is corrected.
    **hyper
        Any run-config key with underscores; the prefix of the algorithm may be left out (``mu``, ``alpha``,
        ``option``, ``window``). For an algorithm of your own, other names become ``config.run.options``.

    Returns
    -------
    weights : dict of str to Tensor
        The final global weights, in ``dtype``, on the CPU.
    history : list of dict
        One dict per round with the keys of ``stats.jsonl``.

    Raises
    ------
    ConfigError
        Naming a key that does not exist or a value that cannot be used.
    RoundFailedError
        When no client could train.
    """
    data = [as_training_data(dataset, dtype) for dataset in client_datasets]
    steps = [local_steps] * len(data) if isinstance(local_steps, int) else list(local_steps)
    if len(steps) != len(data):
        raise ConfigError(f"local_steps = {steps} has {len(steps)} numbers for {len(data)} clients: give one for each.")
    task = InMemoryTask(copy.deepcopy(model).to("cpu", dtype), _with_generator(loss_fn), data, steps)
    with tempfile.TemporaryDirectory() as folder:
        given: dict[str, Scalar] = {
            "num-rounds": rounds,
            "num-clients": len(data),
            "local-steps": min(steps),
            "learning-rate": float(lr),
            "correction-learning-rate": float(lr),
            "optimizer": optimizer,
            "seed": seed,
            "batch-size": batch_size or 0,
            "state-dir": folder,
        }
        kind, config = _configure(algorithm, given, hyper)
        recorder = MemoryRecorder(Path(folder))
        strategy = kind(config, recorder, task)
        if auxiliary_data is not None:
            strategy.auxiliary_data = as_training_data(auxiliary_data, dtype)  # type: ignore[attr-defined]
        setup = ClientSetup(config, kind, Worker(config, task))
        grid = InProcessGrid(create_client_app(lambda _: setup), len(data), {})
        with _quiet():
            result = strategy.start(grid, to_arrays(snapshot(task.create_model())), num_rounds=rounds)
    return to_weights(result.arrays), [row for row in recorder.stats if row["phase"] == "round"]


class MemoryRecorder:
    """Keeps what a run records in memory; see ``federation.ports.Recorder``."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.stats: list[dict[str, Any]] = []
        self.auxiliary_data: TrainingData | None = None

    def append(self, stats: Mapping[str, object]) -> None:
        """Keep one object of ``stats.jsonl``."""
        self.stats.append(dict(stats))

    def save_auxiliary(self, data: TrainingData, clients: list[int]) -> None:
        """Keep D_aux."""
        self.auxiliary_data = data


def _configure(
    algorithm: str | type[FederatedDiffusion], given: dict[str, Scalar], hyper: Mapping[str, Scalar]
) -> tuple[type[FederatedDiffusion], Config]:
    """Return the strategy and the whole config: the defaults, made plain, then what was given."""
    name = algorithm if isinstance(algorithm, str) else f"{algorithm.__module__}:{algorithm.__qualname__}"
    overrides: dict[str, Scalar] = {"algorithm": name}
    options: dict[str, Scalar] = {}
    prefix = _prefix(algorithm)
    for key, value in hyper.items():
        known = _known_key(key, prefix)
        if known is not None:
            overrides[known] = value
        elif ":" in name:
            options[key] = value
        else:
            close = difflib.get_close_matches(key.replace("_", "-"), [*known_keys(), *_SYMBOLS], n=3, cutoff=0.4)
            raise ConfigError(f"{key} = {value!r}: there is no such key; did you mean {', '.join(close) or 'another'}?")
    if options:
        overrides["algorithm-options"] = " ".join(f"{key}={_as_text(value)}" for key, value in options.items())
    config = load_config(default_run_config() | _PLAIN | given | overrides)
    if isinstance(algorithm, str):
        return get_algorithm(config), config
    algorithm.check_config(config)
    return algorithm, config


def _prefix(algorithm: str | type[FederatedDiffusion]) -> str:
    """Return the key prefix of an algorithm, or of the registered one that it derives from."""
    if isinstance(algorithm, str):
        return _PREFIXES.get(algorithm, "")
    names = {kind: name for name, kind in REGISTRY.items()}
    return next((_PREFIXES[names[kind]] for kind in algorithm.__mro__ if names.get(kind) in _PREFIXES), "")


def _known_key(name: str, prefix: str) -> str | None:
    """Return the run-config key that a hyper-parameter's name stands for."""
    kebab, known = name.replace("_", "-"), known_keys()
    symbol = _SYMBOLS.get(kebab, "")
    candidates = [kebab, prefix + kebab, symbol if prefix and symbol.startswith(prefix) else "", f"aggregator-{kebab}"]
    return next((key for key in candidates if key in known), None)


def _as_text(value: Scalar) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _with_generator(loss_fn: Callable[..., Tensor]) -> LossFn:
    """Return a loss that takes a generator, whether ``loss_fn`` has a place for one or not."""
    parameters = list(inspect.signature(loss_fn).parameters.values())
    third = parameters[2] if len(parameters) > 2 else None
    if third is not None and (third.name == "generator" or third.default is inspect.Parameter.empty):
        return loss_fn

    def loss(model: nn.Module, batch: Example, _: torch.Generator) -> Tensor:
        return loss_fn(model, batch)

    return loss


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Flower's line per step of every round to itself."""
    flower = logging.getLogger("flwr")
    level = flower.level
    flower.setLevel(logging.ERROR)
    try:
        yield
    finally:
        flower.setLevel(level)
