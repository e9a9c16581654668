"""Training on a CPU with the allocator of the C library, and with one that is preloaded.

``python -m benchmarks.allocator [--short] [--json FILE]``. The allocators take turns; each turn has two processes with
one thread each, as the actors of a simulation. A ratio is the time divided by that of the C library's allocator. The
weights after training must be the same bit for bit.
"""

import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from benchmarks.models import LARGE, MIDDLE, TINY
from benchmarks.processes import Arrangement, measure_processes
from benchmarks.report import Report, main, spread

PLAIN = "C library"
LIBRARIES = {"tcmalloc": "libtcmalloc_minimal.so.4", "jemalloc": "libjemalloc.so.2"}
FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib")
CASES = {TINY: (32, 200, 40), MIDDLE: (64, 8, 2), LARGE: (8, 4, 1)}  # batch, steps per turn: full form, short form


def measure(short: bool) -> Report:
    """Measure all models."""
    found = {PLAIN: ""} | {name: path for name, file in LIBRARIES.items() if (path := find(file))}
    if len(found) == 1:
        typer.echo("no other allocator is installed (Debian: apt-get install libtcmalloc-minimal4 libjemalloc2)")
    report = Report("allocator", "Training in two processes: the C library's allocator and preloaded ones", short)
    for model, (batch_size, *steps) in list(CASES.items())[: 1 if short else None]:
        _compare(report, model, batch_size, Arrangement(2, 1, steps[short]), found)
    return report


def _compare(report: Report, model: str, batch_size: int, arrangement: Arrangement, found: dict[str, str]) -> None:
    """Add a row for each allocator."""
    milliseconds: dict[str, list[float]] = {name: [] for name in found}
    digests = set()
    for _ in range(1 if report.short else 5):
        for name, path in found.items():
            with preloaded(path):
                processes = measure_processes(arrangement, model, batch_size)
            milliseconds[name].append(1e3 * processes.seconds / arrangement.steps)
            digests |= processes.digests
    if len(digests) != 1:
        raise RuntimeError(f"{model}: the weights after training depend on the allocator")
    base = statistics.median(milliseconds[PLAIN])
    for name, each in milliseconds.items():
        step = statistics.median(each)
        row = {"model": model, "batch": batch_size, "allocator": name, "ms per step": step}
        report.add(**row, **{"lowest-highest": spread(each), "ratio": step / base})
        if name != PLAIN:
            report.ratio(f"{model}: {name} / {PLAIN}", step / base)


def find(file: str) -> str:
    """Return the path of a shared library; empty if it is not installed."""
    candidates = (path for folder in FOLDERS for path in (Path(folder, file), *Path(folder).glob(f"*/{file}")))
    return next((str(path) for path in candidates if path.exists()), "")


@contextmanager
def preloaded(path: str) -> Iterator[None]:
    """Let the processes that start in the body load a library first; an empty path stands for none."""
    before = os.environ.pop("LD_PRELOAD", None)
    if path:
        os.environ["LD_PRELOAD"] = path
    try:
        yield
    finally:
        os.environ.pop("LD_PRELOAD", None)
        if before is not None:
            os.environ["LD_PRELOAD"] = before


if __name__ == "__main__":
    main(measure)
