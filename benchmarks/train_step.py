"""One training step: our loop against a plain loop, and many small processes against one large process.

``python -m benchmarks.train_step [--short] [--json FILE]``; on CUDA if available, else on the CPU. Both loops have the
same UNet, batch, threads, clipping and an EMA, and run in turns. A ratio is our time divided by the time of the plain
loop, which is always float32; below 1, our loop is faster. The loading and copying of weights is not timed.
"""

import statistics
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models import (
    LARGE,
    MIDDLE,
    TINY,
    TimedData,
    config_of,
    create_benchmark_trainer,
    random_images,
)
from benchmarks.plain_loop import PlainLoop
from benchmarks.processes import Arrangement, measure_processes
from benchmarks.report import Report, main, spread
from fedddpm_app.config import Config
from fedddpm_app.device import cpu_threads, resolve_device
from fedddpm_app.diffusion.objective import create_noise_scheduler
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.training.acceleration import PLAIN, Acceleration
from fedddpm_app.training.task import TrainingData
from fedddpm_app.training.trainer import Trainer
from fedddpm_app.weights import snapshot

BF16_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense, SXM, from the manufacturer, in FLOP/s
BATCHES = {
    "cpu": {TINY: 64, MIDDLE: 64, LARGE: 8},
    "cuda": {TINY: 64, MIDDLE: 64, LARGE: 128},
}
STEPS = {  # steps per timing: full form, short form
    "cpu": {TINY: (100, 30), MIDDLE: (6, 2), LARGE: (3, 1)},
    "cuda": {TINY: (200, 50), MIDDLE: (200, 50), LARGE: (50, 20)},
}
OURS = {
    "cpu": {"fp32": PLAIN, "bf16": Acceleration("bf16")},
    "cuda": {
        "fp32": PLAIN,
        "bf16, NHWC": Acceleration("bf16", channels_last=True),
        "bf16, compiled": Acceleration("bf16", compiled=True),
    },
}


def measure(short: bool) -> Report:
    """Measure all models."""
    report = Report("train_step", "One training step: ours against a plain loop", short)
    device = resolve_device("auto")
    for model in (TINY, MIDDLE, LARGE):
        all_threads = torch.get_num_threads()
        for threads in (1, all_threads) if device.type == "cpu" and model != LARGE else (all_threads,):
            with cpu_threads(threads):
                _compare(report, model, device, threads)
    if device.type == "cpu":
        _compare_processes(report)
    return report


def _compare(report: Report, model: str, device: torch.device, threads: int) -> None:
    """Add a row for the plain loop, and one for each variant of our loop."""
    config, kind = config_of(model), device.type
    batch_size, steps = BATCHES[kind][model], STEPS[kind][model][report.short]
    images = random_images(config, 8 * batch_size, torch.device("cpu"))
    unet = create_unet(config.unet, config.data, config.run.seed)
    plain = PlainLoop(unet, create_noise_scheduler(config.diffusion), images.images, batch_size, device)
    timers: dict[str, Callable[[int], float]] = {"plain fp32": plain.seconds}
    for name, acceleration in OURS[kind].items():
        if model == LARGE or acceleration == PLAIN:
            timers[f"ours {name}"] = _timer(
                create_benchmark_trainer(config, device, acceleration), images.to(device), batch_size
            )
    for timer in timers.values():
        timer(2)
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    for _ in range(2 if report.short else 5):
        for name, timer in timers.items():
            seconds[name].append(timer(steps) / steps)
    flops = _flops(config, batch_size) if kind == "cuda" else 0
    base = statistics.median(seconds["plain fp32"])
    for name, each in seconds.items():
        step = statistics.median(each)
        ratio = step / base
        row = {"model": model, "loop": name, "batch": batch_size, "threads": threads, "ms per step": 1e3 * step}
        row |= {"lowest-highest": spread([1e3 * s for s in each]), "images/s": batch_size / step, "ratio": ratio}
        peak = next((p for gpu, p in BF16_PEAKS.items() if flops and gpu in torch.cuda.get_device_name(device)), None)
        report.add(**row, **({"of bf16 peak": flops / step / peak} if peak else {}))
        if name != "plain fp32":
            report.ratio(f"{model}, {threads} threads: {name} / plain fp32", ratio)


def _timer(trainer: Trainer, images: TrainingData, batch_size: int) -> Callable[[int], float]:
    start = snapshot(trainer.model)

    def seconds(steps: int) -> float:
        data = TimedData(images, steps)
        trainer.train(start, data, steps=data.total_steps, seed=0, batch_size=batch_size, ema_decay=0.9999)
        return data.seconds

    return seconds


def _flops(config: Config, batch_size: int) -> int:
    """Return the number of floating-point operations in the matrix products and convolutions of a step."""
    model, size = create_unet(config.unet, config.data, 0).to("meta"), config.data.image_size
    images = torch.empty(batch_size, config.data.image_channels, size, size, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(images, torch.empty(batch_size, dtype=torch.int64, device="meta")).sample.sum().backward()
    total: int = counter.get_total_flops()
    return total


def _compare_processes(report: Report) -> None:
    """Add the steps per second of two processes with one thread each, and of one process with two threads."""
    steps, batch_size = (6 if report.short else 24), BATCHES["cpu"][MIDDLE]
    many, one = Arrangement(2, 1, steps), Arrangement(1, 2, steps)
    rates: dict[Arrangement, list[float]] = {many: [], one: []}
    for _ in range(1 if report.short else 3):
        for each, found in rates.items():
            found.append(each.processes * steps / measure_processes(each, MIDDLE, batch_size).seconds)
    for each, found in rates.items():
        row = {"model": MIDDLE, "loop": f"ours fp32, {each}", "batch": batch_size, "threads": 2}
        report.add(**row, **{"steps/s": statistics.median(found), "lowest-highest": spread(found)})
    ratio = statistics.median(rates[many]) / statistics.median(rates[one])
    report.ratio(f"{MIDDLE}: steps per second of {many} / of {one}", ratio)


if __name__ == "__main__":
    main(measure)
