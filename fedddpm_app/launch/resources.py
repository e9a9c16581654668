"""The processors that a simulation needs, and those that this machine has."""

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

from fedddpm_app.config import Config, ConfigError, Scalar

_CPUS, _GPUS = "client-resources-num-cpus", "client-resources-num-gpus"
_ALL_CPUS, _ALL_GPUS = "init-args-num-cpus", "init-args-num-gpus"


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use: its affinity and the limits of its container, at least 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # joblib's about a /dev/shm that cannot be written, which has its own check
        from joblib import cpu_count

    return int(cpu_count())


def ray_temporary_folder() -> tuple[str, str]:
    """Return the environment variable that sets the folder of Ray's files, and the folder."""
    names = ["RAY_TMPDIR", *(["TMPDIR"] if sys.platform.startswith("linux") else [])]
    name = next((name for name in names if name in os.environ), names[-1])
    return name, os.environ.get(name, "/tmp")  # noqa: S108 # where Ray puts its own files


def joins_cluster() -> bool:
    """Return whether Ray connects to a running cluster instead of starting its own processes."""
    address = os.environ.get("RAY_ADDRESS", "")
    return address != "local" if address else Path(ray_temporary_folder()[1], "ray", "ray_current_cluster").is_file()


def simulation_resources(config: Config, given: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the federation config of a simulation; ``given`` values replace ours.

    Ray itself would count the CPUs of the machine, not the CPUs that the process may use.
    """
    resources: dict[str, Scalar] = {"num-supernodes": config.data.num_clients, _CPUS: config.run.client_threads}
    return resources | ({} if joins_cluster() else {_ALL_CPUS: usable_cpus()}) | dict(given)


def check_resources(config: Config, given: Mapping[str, Scalar]) -> None:
    """Raise ``ConfigError`` if Ray cannot start one client with the resources of ``simulation_resources``.

    On a cluster, only Ray knows the resources of the nodes.
    """
    resources = simulation_resources(config, given)
    for key in (_CPUS, _ALL_CPUS):
        value = resources.get(key, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"{key} = {value!r} in --federation-config: give a whole number of CPUs, at least 1.")
    if not joins_cluster():
        _check_cpus(config, given, int(resources[_CPUS]), int(resources[_ALL_CPUS]))
        _check_gpus(resources)


def _check_cpus(config: Config, given: Mapping[str, Scalar], needed: int, available: int) -> None:
    if needed <= available:
        return
    key = f"{_CPUS} = {needed}" if _CPUS in given else f"client-threads = {config.run.client_threads}"
    source = f"{_ALL_CPUS} = {available} allows" if _ALL_CPUS in given else "this process may use"
    raise ConfigError(
        f"{key} is more than the {available} CPUs that {source}: use at most {available}, or let the threads share the "
        f"CPUs (slow) with --federation-config '{_ALL_CPUS}={needed}'."
    )


def _check_gpus(resources: Mapping[str, Scalar]) -> None:
    needed = resources.get(_GPUS, 0)
    if isinstance(needed, bool) or not isinstance(needed, int | float) or needed < 0 or (needed > 1 and needed % 1):
        raise ConfigError(
            f"{_GPUS} = {needed!r} in --federation-config: give a share of one GPU, such as 0.25, or a whole number."
        )
    if not needed:
        return
    available = resources.get(_ALL_GPUS)
    if available is None:
        import torch

        available = torch.cuda.device_count()
    if not isinstance(available, int) or needed > available:
        raise ConfigError(
            f"{_GPUS} = {needed} is more than the {available} GPUs here: use less, or leave it out to train on the CPU."
        )


def crowding(config: Config, given: Mapping[str, Scalar], simulated: bool) -> str:
    """Return a sentence if the run starts more threads than there are CPUs; empty if it does not.

    Such a run is slow, but its results are those of a larger machine.
    """
    clients, cpus = 1, usable_cpus()
    if simulated:
        if joins_cluster():
            return ""
        resources = simulation_resources(config, given)
        at_once = config.run.clients_per_round or config.data.num_clients
        clients = min(at_once, int(resources[_ALL_CPUS]) // int(resources[_CPUS]))
    threads = clients * config.run.client_threads
    if threads > cpus:
        return f"{clients} clients at once x client-threads = {config.run.client_threads}: {threads} threads share " + (
            f"{cpus} CPUs, so the run is slow"
        )
    if config.run.server_threads > cpus:
        return f"server-threads = {config.run.server_threads} threads share {cpus} CPUs, so the server is slow"
    return ""
