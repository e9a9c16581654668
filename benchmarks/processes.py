"""Training steps in several processes at the same time, as in the actors of a simulation."""

import hashlib
import multiprocessing
from dataclasses import dataclass
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import torch

from benchmarks.models import TimedData, config_of, create_benchmark_trainer, random_images
from fedddpm_app.training.acceleration import PLAIN
from fedddpm_app.weights import snapshot


@dataclass(frozen=True)
class Arrangement:
    """The number of processes and of threads per process; each process takes ``steps`` steps."""

    processes: int
    threads: int
    steps: int

    def __str__(self) -> str:
        return f"{self.processes} x {self.threads} threads"


@dataclass(frozen=True)
class Processes:
    """The wall time of the slowest process in seconds, and the SHA-256 of each process's weights after training."""

    seconds: float
    digests: set[str]


def measure_processes(arrangement: Arrangement, model: str, batch_size: int) -> Processes:
    """Train in several processes on a CPU; the first timed step is synchronised."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(arrangement.processes), context.Queue()
    arguments = (arrangement, model, batch_size, barrier, results)
    workers = [context.Process(target=_work, args=arguments) for _ in range(arrangement.processes)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    return Processes(max(seconds for seconds, _ in found), {digest for _, digest in found})


def _work(
    arrangement: Arrangement, model: str, batch_size: int, barrier: Barrier, results: "Queue[tuple[float, str]]"
) -> None:
    torch.set_num_threads(arrangement.threads)
    config, device = config_of(model), torch.device("cpu")
    trainer = create_benchmark_trainer(config, device, PLAIN)
    data = TimedData(random_images(config, 512, device), arrangement.steps)
    data.on_start = barrier.wait
    trainer.train(snapshot(trainer.model), data, steps=data.total_steps, seed=0, batch_size=batch_size)
    digest = hashlib.sha256()
    for weight in snapshot(trainer.model).values():
        digest.update(weight.numpy().tobytes())
    results.put((data.seconds, digest.hexdigest()))
