"""Images per second and Fréchet distance of every sampler, on the demo's model; on CUDA also the 35.75 M model's speed.

``python -m benchmarks.sampling [--short] [--json FILE]``. The model is trained on all of the demo's digits in one
place, and each sampler generates the same number of images with the same seeds. The distance is the app's
``fd-classifier`` against the test split. Claim: DPM-Solver++ with 20 steps is at least 40 times faster than DDPM with
1,000 steps.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import LARGE, config_of
from benchmarks.report import Report, main
from fedddpm_app import weights as weights_module
from fedddpm_app.client.worker import Worker
from fedddpm_app.config import Config, Precision, Sampler, default_run_config, load_config
from fedddpm_app.device import cpu_threads
from fedddpm_app.diffusion.objective import create_noise_scheduler
from fedddpm_app.diffusion.sampling import SAMPLERS, SampleBatch, image_seeds, sample_batch, sample_images
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.evaluation.evaluator import Evaluator
from fedddpm_app.evaluation.metrics import SamplingInfo
from fedddpm_app.experiment.evaluators import create_evaluator, without_partition
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.seeding import derive_seed
from fedddpm_app.weights import snapshot

BASE, FAST = ("ddpm", 1000), ("dpm-solver++", 20)
PLANS: list[tuple[Sampler, int]] = [
    ("ddpm", 1000),
    ("ddpm", 250),
    ("ddim", 100),
    ("ddim", 50),
    ("ddim", 20),
    ("dpm-solver++", 50),
    ("dpm-solver++", 20),
    ("dpm-solver++", 10),
]
BATCH = 250


def measure(short: bool) -> Report:
    """Measure the demo's model for each seed, and on a CUDA device also the large model."""
    report = Report("sampling", "Sampling the demo's model: speed, and Fréchet distance to the test split", short)
    seeds, steps, images = ((0,), 300, BATCH) if short else ((0, 1, 2), 1500, 2 * BATCH)
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    distances: dict[tuple[str, int], list[float]] = defaultdict(list)
    floor = float("nan")
    for seed in seeds:
        config = without_partition(load_config(default_run_config() | {"seed": seed, "device": "cpu"}))
        evaluator, model = create_evaluator(config), _train(config, steps)
        for plan in PLANS:
            with cpu_threads(config.run.server_threads):
                rate, distance, floor = _generate(config, model, evaluator, plan, images)
            rates[plan].append(rate)
            distances[plan].append(distance)
    for plan in PLANS:
        speed_ups = [rate / base for rate, base in zip(rates[plan], rates[BASE], strict=True)]
        report.add(
            sampler=plan[0],
            steps=plan[1],
            **_mean_and_range("images per s", rates[plan]),
            **_mean_and_range("times ddpm 1000", speed_ups),
            **_mean_and_range(f"fd-classifier, n = {images}", distances[plan]),
            seeds=len(seeds),
            floor=floor,
        )
    report.ratio("images per s, dpm-solver++ 20 over ddpm 1000", _mean(rates[FAST]) / _mean(rates[BASE]))
    report.ratio("fd-classifier of ddpm 1000", _mean(distances[BASE]))
    report.ratio("fd-classifier of dpm-solver++ 20", _mean(distances[FAST]))
    report.ratio("fd-classifier of ddim 50", _mean(distances["ddim", 50]))
    if torch.cuda.is_available():
        measure_large(report, config_of(LARGE), torch.device("cuda"), batch=128)
    return report


def measure_large(report: Report, config: Config, device: torch.device, batch: int) -> None:
    """Add the rows of a model with random weights: a plain float32 loop, then the app's batches in fp32 and bf16."""
    model = create_unet(config.unet, config.data, 0).eval().to(device)
    flops = _flops_of_a_call(model, config, batch) * FAST[1]
    peak = _matrix_peak(device)
    name = f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M, batch {batch}"
    plain = batch / _seconds(lambda: _plain_loop(model, config, batch), device)
    report.add(sampler=f"{name}, plain float32 loop", steps=FAST[1], **{"images per s": plain})
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        rate = batch / _seconds(lambda p=precision: _one_batch(model, config, batch, p), device)  # type: ignore[misc]
        report.add(sampler=f"{name}, {precision}", steps=FAST[1], **{"images per s": rate})
        report.ratio(f"{name}: images per s, {precision} over the plain float32 loop", rate / plain)
        report.ratio(f"{name}: {precision}'s fraction of the bf16 matrix peak", rate / batch * flops / peak)


def _train(config: Config, steps: int) -> nn.Module:
    """Return the demo's model with the EMA weights of a training on all digits, as in the demo's pretraining."""
    worker = Worker(config, DiffusionTask(config))
    trainer, settings = worker.trainer, config.pretrain
    with cpu_threads(config.run.client_threads):
        result = trainer.train(
            snapshot(trainer.model),
            worker.task.pooled_data(),
            steps=steps,
            seed=derive_seed(config.run.seed, "benchmark"),
            learning_rate=settings.learning_rate,
            learning_rate_schedule=settings.learning_rate_schedule,
            ema_decay=config.training.ema_decay,
        )
    weights_module.load_into(trainer.model, result.weights)
    return trainer.model


def _generate(
    config: Config, model: nn.Module, evaluator: Evaluator, plan: tuple[Sampler, int], count: int
) -> tuple[float, float, float]:
    """Return images per second, their Fréchet distance, and the distance of real images."""
    began = time.perf_counter()
    images = sample_images(
        model,
        create_noise_scheduler(config.diffusion),
        sampler=plan[0],
        steps=plan[1],
        seeds=image_seeds(config.run.seed, "benchmark", count),
        shape=(config.data.image_channels, config.data.image_size, config.data.image_size),
        batch_size=BATCH,
    )
    rate = count / (time.perf_counter() - began)
    metrics = evaluator.measure([images], SamplingInfo(*plan, "ema"), find_copies=False).metrics
    metric = next(metric for metric in metrics if metric.name.startswith("fd-"))
    return rate, metric.value, metric.floor


def _one_batch(model: nn.Module, config: Config, count: int, precision: Precision) -> None:
    size = config.data.image_size
    batch = SampleBatch(image_seeds(0, "benchmark", count), None, count)
    shape = (config.data.image_channels, size, size)
    scheduler = create_noise_scheduler(config.diffusion)
    sample_batch(model, scheduler, batch, sampler="dpm-solver++", steps=FAST[1], shape=shape, precision=precision)


@torch.no_grad()
def _plain_loop(model: nn.Module, config: Config, count: int) -> None:
    """Run the loop of diffusers' pipelines."""
    kind, options = SAMPLERS["dpm-solver++"]
    sampler = kind.__base__.from_config(create_noise_scheduler(config.diffusion).config, **options)
    x = _noise(model, config, count)
    sampler.set_timesteps(FAST[1], device=x.device)
    for t in sampler.timesteps:
        x = sampler.step(model(x, t).sample, t, x).prev_sample
    x.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def _noise(model: nn.Module, config: Config, count: int) -> torch.Tensor:
    size, device = config.data.image_size, next(model.parameters()).device
    return torch.randn(count, config.data.image_channels, size, size, device=device)


@torch.no_grad()
def _flops_of_a_call(model: nn.Module, config: Config, count: int) -> int:
    with FlopCounterMode(display=False) as counter:
        model(
            _noise(model, config, count), torch.zeros(count, dtype=torch.int64, device=next(model.parameters()).device)
        )
    return counter.get_total_flops()


def _matrix_peak(device: torch.device, size: int = 8192) -> float:
    """Return the floating-point operations per second of a large bf16 matrix product."""
    size = size if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 / _seconds(lambda: torch.mm(a, a), device)


def _seconds(work: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Return the median time of ``work``, after one call to warm up."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def _mean(values: list[float]) -> float:
    return statistics.mean(values)


def _mean_and_range(name: str, values: list[float]) -> dict[str, float | str]:
    shown = f"{min(values):.4g} to {max(values):.4g}"
    return {name: _mean(values)} | ({f"{name}: range": shown} if len(values) > 1 else {})


if __name__ == "__main__":
    main(measure)
