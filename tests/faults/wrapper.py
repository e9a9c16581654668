"""A ClientApp around the real one that plants faults: in-process, and in an app folder of its own under Ray.

``FaultyClientApp(app, "train:1:2:nan pretrain:0:*:raise")`` answers as ``app`` does, except that client 1 sends NaN in
round 2, and client 0 raises in pretraining. A fault is PHASE:PARTITION:ROUND:FAULT; ``*`` is any partition or round.
Without the second argument, the environment variable ``FEDDDPM_TEST_FAULTS`` has the text. The choice depends on the
message alone, so that it is the same in every process. The module imports nothing from ``tests``.
"""

import os
import signal
import sys
import time
from collections.abc import Callable

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedddpm_app.transport.carriers import pack_arrays, pack_flat, read_record

VARIABLE = "FEDDDPM_TEST_FAULTS"
PHASES = {
    "query": "query",
    "survey": "query.look",
    "pretrain": "train.pretrain",
    "generate": "train.generate",
    "score": "train.score",
    "submit": "train.train_and_submit",
    "train": "train",
    "keys": "train.secure_keys",
    "shares": "train.secure_shares",
    "reveal": "train.secure_reveal",
    "evaluate": "evaluate",
    "forget": "query.forget",
}
HONEST = "honest"  # for a table with a row that plants nothing


class FaultyClientApp(ClientApp):
    """See the module; ``seen`` counts the planted faults of this process, by their text."""

    def __init__(self, app: ClientApp, faults: str | None = None) -> None:
        super().__init__()
        self._app, self._faults = app, faults
        self.seen: dict[str, int] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        fault = self._chosen(message, context)
        return self._app(message, context) if fault is None else FAULTS[fault](self._app, message, context)

    def _chosen(self, message: Message, context: Context) -> str | None:
        faults = os.environ.get(VARIABLE, "") if self._faults is None else self._faults
        config = message.content.config_records.get("config", ConfigRecord())
        for text in faults.split():
            phase, partition, server_round, fault = text.split(":")
            here = PHASES[phase] == message.metadata.message_type
            me = partition in ("*", str(context.node_config["partition-id"]))
            if here and me and server_round in ("*", str(config.get("server-round", 0))) and fault != HONEST:
                self.seen[text] = self.seen.get(text, 0) + 1
                return fault
        return None


Fault = Callable[[ClientApp, Message, Context], Message]
FAULTS: dict[str, Fault] = {}


def _before(name: str, action: Callable[[], object]) -> None:
    """Add a fault in place of the answer."""

    def fault(app: ClientApp, message: Message, context: Context) -> Message:
        return action()

    FAULTS[name] = fault


def _after(name: str, change: Callable[[RecordDict], None]) -> None:
    """Add a fault that changes the content of the answer."""

    def fault(app: ClientApp, message: Message, context: Context) -> Message:
        reply = app(message, context)
        change(reply.content)
        return reply

    FAULTS[name] = fault


def _weights(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Add a fault that changes the tensors of the answer's first record of arrays."""

    def changed(content: RecordDict) -> None:
        key = next(iter(content.array_records))
        record = content[key]
        tensors = change({name: tensor.clone() for name, tensor in read_record(record).items()})
        as_flower = len(record) > 1 or "weights" not in record
        content[key] = (pack_arrays if as_flower else pack_flat)(tensors).record

    _after(name, changed)


def _bytes(name: str, change: Callable[[bytes], bytes]) -> None:
    """Add a fault that changes the bytes of the answer's first array."""

    def changed(content: RecordDict) -> None:
        record = content[next(iter(content.array_records))]
        key = next(iter(record))
        array = record[key]
        record[key] = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=change(array.data))

    _after(name, changed)


def _metrics(name: str, **metrics: float | list[float]) -> None:
    """Add a fault that changes metrics of the answer."""
    _after(name, lambda content: content["metrics"].update({k.replace("_", "-"): v for k, v in metrics.items()}))


def _further_record(content: RecordDict) -> None:
    """Scale the answer's last record of arrays, if it has more than one."""
    _, *others = content.array_records
    for key in others[-1:]:
        scaled = {name: tensor * 1e10 for name, tensor in read_record(content[key]).items()}
        content[key] = pack_flat(scaled).record


def _floats(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    return lambda ws: {name: change(w) if w.is_floating_point() else w for name, w in ws.items()}


def _in_200_values(ws: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    left = 200
    for w in ws.values():
        if w.is_floating_point() and left > 0:
            w.view(-1)[:left] = 1e10
            left -= min(left, w.numel())
    return ws


def _last(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable:
    """Change one tensor only, which is not the first."""
    return lambda ws: ws | {name: change(ws[name]) for name in [*ws][-1:]}


def _raise(text: str) -> None:
    raise RuntimeError(text)


def _stale(app: ClientApp, message: Message, context: Context) -> Message:
    """Answer the round before: what an honest client would have sent then, from today's weights."""
    config = message.content["config"]
    earlier = ConfigRecord({**config, "server-round": int(config["server-round"]) - 1})
    now = message.content
    message.content = RecordDict({**now, "config": earlier})
    reply = app(message, context)
    message.content = now
    return reply


def _huge_header(data: bytes) -> bytes:
    """Claim a header of 2^62 bytes, in the format of the carrier."""
    return (2**62).to_bytes(8, "little") + data[8:] if data[:6] != b"\x93NUMPY" else data[:8] + b"\xff\xff" + data[10:]


_before("raise", lambda: _raise("a planted fault"))
_before("raise-5mb", lambda: _raise("\x1b[31mlong\x1b[0m\n" + "x" * 5_000_000))
_before("none", lambda: None)
_before("not-a-message", lambda: {"metrics": 1})
_before("exit", lambda: sys.exit(3))
_before("os-exit", lambda: os._exit(3))
_before("kill", lambda: os.kill(os.getpid(), signal.SIGKILL))
_before("hang", lambda: time.sleep(3600))
_weights("nan", _floats(lambda w: w * float("nan")))
_weights("inf", _last(lambda w: torch.full_like(w, float("inf"))))
_weights("1e30", _floats(lambda w: torch.full_like(w, 1e30)))
_weights("x1e3", _floats(lambda w: w * 1e3))
_weights("x1e10", _floats(lambda w: w * 1e10))
_weights("1e10-in-200", _in_200_values)
_weights("sign-flip", _floats(lambda w: -w))
_weights("shape", _last(lambda w: w.reshape(-1)[:-1]))
_weights("dtype", _last(lambda w: w.double() if w.is_floating_point() else w.int()))
_weights("missing-key", lambda ws: dict([*ws.items()][:-1]))
_weights("extra-key", lambda ws: ws | {"more": torch.zeros(3)})
_weights("constant", lambda ws: {name: torch.full_like(w, 7) for name, w in ws.items()})
_bytes("garbage", lambda data: b"garbage" * 1000)
_bytes("header-bomb", _huge_header)
_bytes("truncated", lambda data: data[:-5])
for _count in ("1e12", "1e7", "1e6", "-1", "0"):
    _metrics(f"examples-{_count}", num_examples=int(float(_count)))
_metrics("examples-nan", num_examples=float("nan"))
_metrics("many-numbers", mine=[0.5] * 200_000)
_metrics("long-name", **{"n" * 100_000: 1.0})
_metrics("loss-1e300", loss=1e300)
_after("record-x1e10", _further_record)
FAULTS["stale"] = _stale
_after("empty", lambda content: content.clear())
_after("no-metrics", lambda content: content.pop("metrics"))
_after("wrong-records", lambda content: content.update({"metrics": ArrayRecord(), "arrays": MetricRecord({"a": 1})}))
