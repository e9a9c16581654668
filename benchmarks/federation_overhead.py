"""The cost of federation: the rounds of a simulation against the same gradient steps in bare processes.

``python -m benchmarks.federation_overhead [--short] [--json FILE]``; on a CPU. FedAvg on the embedded digits runs
under ``flwr run`` with two actors of one thread each. The time of a round is ``time/round_s`` minus the evaluation on
the server and the clients. The first round, in which the actors build their models, is reported separately. The bare
side takes the same number of steps with the same model and batch and with the app's ``Trainer``, so that only the
federation differs. It runs once in as many processes as there are actors, and once in one process with all their
threads; the ratio is relative to the faster of the two. Only its steps are timed, not the loading and copying of
weights or the start of the processes.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.models import LARGE, MODELS, TINY
from benchmarks.processes import Arrangement, measure_processes
from benchmarks.report import Report, main, spread
from fedddpm_app.config import Scalar
from fedddpm_app.launch.flower_run import to_toml

ACTORS = 2
_QUIET: dict[str, Scalar] = {
    "algorithm": "fedavg",
    "device": "cpu",
    "eval-every": 0,
    "eval-draws": 1,
    "eval-images": 0,
    "eval-final-images": 0,
    "preview-every": 0,
    "preview-images": 1,
    "preview-sampler-steps": 1,
    "run-name": "run",
}


@dataclass(frozen=True)
class Case:
    """A model and its rounds: in every round, each of ``clients`` clients takes ``steps`` steps."""

    model: str
    clients: int
    steps: int
    batch_size: int
    rounds: int
    repeats: int

    @property
    def overrides(self) -> dict[str, Scalar]:
        """The run config of the simulation."""
        own: dict[str, Scalar] = {"num-clients": self.clients, "local-steps": self.steps, "num-rounds": self.rounds}
        own |= {"batch-size": self.batch_size, "warmup-steps": 0}
        own |= {"mixed-channels": "convert"} if "image-channels" in MODELS[self.model] else {}
        return _QUIET | MODELS[self.model] | own


def measure(short: bool) -> Report:
    """Measure all cases."""
    report = Report("federation_overhead", "Rounds of a simulation against bare gradient steps", short)
    if short:
        _compare(report, Case(TINY, clients=4, steps=60, batch_size=64, rounds=3, repeats=1))
        return report
    _compare(report, Case(TINY, clients=4, steps=240, batch_size=64, rounds=6, repeats=2))
    _compare(report, Case(LARGE, clients=2, steps=10, batch_size=8, rounds=4, repeats=2))
    return report


def _compare(report: Report, case: Case) -> None:
    """Add the rows of a case; the bare processes run before and after the simulation."""
    each = case.clients * case.steps // ACTORS
    arrangements = (Arrangement(ACTORS, 1, each), Arrangement(1, ACTORS, ACTORS * each))
    bare: dict[Arrangement, list[float]] = {arrangement: [] for arrangement in arrangements}
    _time_bare(bare, case)
    first, *rounds = _simulate(case)
    for _ in range(case.repeats - 1):
        _time_bare(bare, case)
    best = min(statistics.median(found) for found in bare.values())
    row: dict[str, object] = {
        "model": case.model,
        "batch": case.batch_size,
        "steps per round": case.clients * case.steps,
    }
    for arrangement, found in bare.items():
        _add(report, row, f"bare, {arrangement}", found, best)
    _add(report, row, f"rounds 2 to {case.rounds}", rounds, best)
    _add(report, row, "round 1", [first], best)
    report.ratio(f"{case.model}: rounds 2 to {case.rounds} / bare", statistics.median(rounds) / best)
    whole = (first + sum(rounds)) / (case.rounds * best)
    report.ratio(f"{case.model}: all {case.rounds} rounds / bare", whole)


def _add(report: Report, row: dict[str, object], what: str, seconds: list[float], best: float) -> None:
    middle = statistics.median(seconds)
    report.add(
        **row, **{"what": what, "s per round": middle, "lowest-highest": spread(seconds), "ratio": middle / best}
    )


def _time_bare(bare: dict[Arrangement, list[float]], case: Case) -> None:
    for arrangement, found in bare.items():
        found.append(measure_processes(arrangement, case.model, case.batch_size).seconds)


def _simulate(case: Case) -> list[float]:
    """Return the seconds of each round without evaluation."""
    app = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        overrides = to_toml({**case.overrides, "output-dir": folder})
        command = [sys.executable, "-m", "fedddpm_app.cli", "run", "--app", str(app), "--run-config", overrides]
        subprocess.run(command, cwd=app, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "run" / "stats.jsonl").read_text(encoding="utf-8").splitlines()
    rounds = [row for row in map(json.loads, lines) if row["phase"] == "round"]
    evaluation = ("time/evaluate_s", "time/server-evaluate_s")
    return [row["time/round_s"] - sum(row.get(key, 0.0) for key in evaluation) for row in rounds]


if __name__ == "__main__":
    main(measure)
