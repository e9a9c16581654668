"""The cost of checking a reply and of a checkpoint, for a model of 143 MB, beside a round trip of that model.

Claim: checking a reply takes at most a tenth of a client's round trip, and a checkpoint (weights and EMA, with SHA-256
and flushed to the disk, in the background) at most a tenth of a round trip of 10 clients.
"""

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
from fedddpm_app.federation.replies import ReplySpec, accept_reply
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.recording.checkpoints import CheckpointWriter
from fedddpm_app.transport import Expected, Transport
from fedddpm_app.transport.carriers import pack_file, pack_flat
from fedddpm_app.weights import Weights, num_bytes, snapshot

_CLIENTS = 10  # of the round that a checkpoint is compared with
_METRICS = {"num-examples": 100, "loss": 0.5, "server-round": 0}


def measure(short: bool) -> Report:
    """Time each part several times; in the short form with a model of 0.6 MB, and without a round trip."""
    report = Report("reliability", "Checks of a reply, and a checkpoint of weights and EMA", short)
    torch.set_num_threads(1)  # the default of server-threads
    config = config_of(TINY if short else LARGE)
    weights = snapshot(create_unet(config.unet, config.data, 0))
    size, repeats = num_bytes(weights) / 1e6, 3 if short else 7
    found: dict[str, float] = {}
    for carrier in ("flat", "shared-memory"):
        times = reply_seconds(replace(config.transport, transport=carrier), weights, repeats)
        for part, seconds in times.items():
            found[f"{carrier}: {part}"] = seconds
            report.add(part=f"{carrier}: {part}", mb=size, s=seconds, mb_per_s=size / seconds)
    for part, seconds in checkpoint_seconds({"model": weights, "ema": weights}, repeats).items():
        found[part] = seconds
        report.add(part=part, mb=2 * size, s=seconds, mb_per_s=2 * size / seconds)
    if not short:
        for carrier in ("flat", "shared-memory"):
            trip = run_echo(carrier, "fp32", 2, rounds=5)["s_per_client"]
            report.add(part=f"{carrier}: round trip of a client", mb=2 * size, s=trip, mb_per_s=2 * size / trip)
            checks = found[f"{carrier}: received and checked"] - found[f"{carrier}: received"]
            report.ratio(f"checks / round trip of a client, {carrier}", checks / trip)
            checkpoint = found["checkpoint: on the disk"] / (_CLIENTS * trip)
            report.ratio(f"checkpoint / round of {_CLIENTS} clients, {carrier}", checkpoint)
    return report


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
            writer.save(server_round, models, {}, {}, lambda other, newest=server_round: other == newest)
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
