"""The cost of checking a reply and of a checkpoint: beside a round trip of a model of 143 MB, and in a demo run.

A checkpoint has the weights and their EMA, with SHA-256, flushed to the disk, in the background. Claim: the checks take
at most a tenth of a client's round trip, a round with a checkpoint takes at most a tenth longer than one without (8
clients on 2 actors), and both together take at most a twentieth of the demo's time.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from flwr.app import Message, MetricRecord, RecordDict

from benchmarks.models import LARGE, TINY, config_of
from benchmarks.report import Report, main
from benchmarks.transport import run_echo
from fedddpm_app.config import TransportConfig
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.federation.messages.replies import ReplySpec, accept_reply
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.recording.checkpoints import CheckpointWriter
from fedddpm_app.transport import Expected, Transport
from fedddpm_app.transport.carriers import pack_file, pack_flat
from fedddpm_app.weights import Weights, num_bytes, snapshot

_CLIENTS = 8  # of the round trip
_PAIRS = 3  # measurements with and without checkpoints, in turn
_CARRIERS = ("flat", "shared-memory")
_METRICS = {"num-examples": 100, "loss": 0.5, "server-round": 0}


def measure(short: bool) -> Report:
    """Time each part several times; in the short form only for the demo's model, without a round trip and a run."""
    report = Report("reliability", "Checks of a reply, and a checkpoint of weights and EMA", short)
    torch.set_num_threads(1)  # the default of server-threads
    repeats = 3 if short else 7
    small = _time_parts(report, TINY, repeats)
    if short:
        return report
    large = _time_parts(report, LARGE, repeats)
    for carrier in _CARRIERS:
        plain, saved = (median(found) for found in zip(*(_trips(carrier) for _ in range(_PAIRS)), strict=True))
        report.add(model=LARGE, part=f"{carrier}: round trip of a client", s=plain)
        report.add(model=LARGE, part=f"{carrier}: round trip of a client, with checkpoints", s=saved)
        report.ratio(f"checks / round trip, {carrier}", _checks(large, carrier) / plain)
        report.ratio(f"round with a checkpoint / without, {carrier}", saved / plain)
    seconds, replies, checkpoints = run_demo()
    report.add(model=TINY, part=f"demo: {replies} replies, {checkpoints} checkpoints", s=seconds)
    spent = replies * _checks(small, "shared-memory") + checkpoints * small["checkpoint: on the disk"]
    report.ratio("checks and checkpoints / demo", spent / seconds)
    return report


def _trips(carrier: str) -> list[float]:
    """Return the seconds per client of a round without and with a checkpoint, measured one after the other."""
    return [run_echo(carrier, "fp32", _CLIENTS, rounds=6, checkpoints=on)["s_per_client"] for on in (False, True)]


def _time_parts(report: Report, model: str, repeats: int) -> dict[str, float]:
    """Return the seconds of each part for a model, and add them to the report."""
    config = config_of(model)
    weights = snapshot(create_unet(config.unet, config.data, 0))
    found: dict[str, float] = {}
    for carrier in _CARRIERS:
        times = reply_seconds(replace(config.transport, transport=carrier), weights, repeats)
        found |= {f"{carrier}: {part}": seconds for part, seconds in times.items()}
    found |= checkpoint_seconds({"model": weights, "ema": weights}, repeats)
    for part, seconds in found.items():
        megabytes = num_bytes(weights) / 1e6 * (2 if part.startswith("checkpoint") else 1)
        report.add(model=model, part=part, s=seconds, mb=megabytes, mb_per_s=megabytes / seconds)
    return found


def _checks(found: Mapping[str, float], carrier: str) -> float:
    return found[f"{carrier}: received and checked"] - found[f"{carrier}: received"]


def run_demo() -> tuple[float, int, int]:
    """Run ``fedddpm run``; return its seconds, and its numbers of replies with weights and of checkpoints."""
    app = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory(dir=".") as folder:
        overrides = to_toml({"output-dir": str(Path(folder).resolve()), "run-name": "demo"})
        command = [sys.executable, "-m", "fedddpm_app.cli", "run", "--app", str(app), "--run-config", overrides]
        subprocess.run(command, cwd=app, check=True, stdout=subprocess.DEVNULL)
        run = Path(folder) / "demo"
        seconds = json.loads((run / "summary.json").read_text(encoding="utf-8"))["time/total_s"]
        lines = [json.loads(line) for line in (run / "stats.jsonl").read_text(encoding="utf-8").splitlines()]
    rounds = [line["clients"] for line in lines if line["phase"] == "round"]
    pretrained = [line["pretrain/clients"] for line in lines if line["phase"] == "pretrain"]
    return seconds, sum(len(clients) for clients in rounds + pretrained), len(rounds) + 1


def reply_seconds(settings: TransportConfig, weights: Weights, repeats: int) -> dict[str, float]:
    """Return the median seconds to receive a reply without and with all checks of its content."""
    InProcessGrid(lambda message, context: message, 1, {})  # this process's identity, without which no message is made
    request = Message(RecordDict(), dst_node_id=1000, message_type="train")
    transport = Transport(settings)
    expected = Expected(weights, base=weights)
    spec = ReplySpec({"arrays": expected})
    server_file = transport.pack(weights).file

    def reply() -> Message:
        packed = pack_flat(weights) if server_file is None else pack_file(weights, server_file.directory, "up-0")
        return Message(RecordDict({"arrays": packed.record, "metrics": MetricRecord(_METRICS)}), reply_to=request)

    try:
        return {
            "received": seconds(reply, lambda m: transport.receive(m.content["arrays"], expected, 0), repeats),
            "received and checked": seconds(reply, lambda m: accept_reply(m, 0, spec, transport), repeats),
        }
    finally:
        transport.close()


def checkpoint_seconds(models: Mapping[str, Weights], repeats: int) -> dict[str, float]:
    """Return the median seconds of a checkpoint: for which the server waits, and until it is on the disk."""
    waits, wholes = [], []
    with tempfile.TemporaryDirectory(dir=".") as name:  # on a disk: a temporary folder may be in memory
        writer = CheckpointWriter(Path(name))
        for server_round in range(repeats):
            began = time.perf_counter()
            writer.save(server_round, models, {}, {}, 1, lambda _: False)
            waits.append(time.perf_counter() - began)
            writer.check()
            wholes.append(time.perf_counter() - began)
    return {"checkpoint: the server waits": median(waits), "checkpoint: on the disk": median(wholes)}


def seconds(make: Callable[[], Message], use: Callable[[Message], object], repeats: int) -> float:
    """Return the median seconds of ``use`` on a new message each time, after one that is not timed."""
    use(make())
    times = []
    for _ in range(repeats):
        message = make()
        began = time.perf_counter()
        result = use(message)
        times.append(time.perf_counter() - began)
        del result, message
    return median(times)


if __name__ == "__main__":
    main(measure)
