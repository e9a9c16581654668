"""The cost of a secure sum, without training and messages: seconds of one client and of the server, and bytes.

``python -m benchmarks.secure_sum [--short] [--json FILE]``. All clients are in this process, one after the other,
and one of them is lost after its shares: the server makes that client's masks with all others again.
"""

import time
from collections.abc import Callable, MutableMapping
from contextlib import nullcontext
from typing import Any

import torch

from benchmarks.report import Report, main
from fedddpm_app.secure import keys
from fedddpm_app.secure.client import ClientSession, Record
from fedddpm_app.secure.encoding import Encoding
from fedddpm_app.secure.masks import Vector
from fedddpm_app.secure.server import ServerSession
from fedddpm_app.weights import Weights

_NAME = b"benchmark"
_CLIP = 4.0
PLANS = [(1_110_000, 4), (35_750_000, 4), (1_110_000, 16), (1_110_000, 48)]
SHORT = [(10_000, 3)]


def measure(short: bool) -> Report:
    """Measure each number of weights and clients."""
    report = Report("secure_sum", "A secure sum, of which one client is lost: one client, and the server", short)
    for num_weights, num_clients in SHORT if short else PLANS:
        report.add(**{"weights": num_weights, "clients": num_clients, **_cost(num_weights, num_clients)})
    return report


def _cost(num_weights: int, num_clients: int) -> dict[str, float]:
    """Return the seconds and bytes of one sum; client 0 is measured, and the last one is lost."""
    start = {"w": torch.zeros(num_weights)}
    trained = {"w": torch.randn(num_weights, generator=torch.Generator().manual_seed(0)) * 0.01}
    encoding = Encoding(start, ["loss"], _CLIP, num_clients)
    stores: list[MutableMapping[str, Any]] = [{} for _ in range(num_clients)]
    clients = [ClientSession(store, me, _record()) for me, store in enumerate(stores)]
    server = ServerSession(threshold=max(2, round(0.66 * num_clients)))
    server.public = {me: client.publish(_NAME, 1) for me, client in enumerate(clients)}
    sharing = 0.0
    for me, client in enumerate(clients):
        seconds, made = _timed(lambda client=client: client.share(_NAME, server.public, server.threshold))
        server.add_shares(me, made)
        sharing = sharing or seconds
    masking = 0.0
    for me, client in enumerate(clients[:-1]):
        client.receive(_NAME, server.sealed_for(me), server.promised_to(me))
        seconds, vector = _timed(lambda client=client: _masked(client, encoding, trained, num_clients))
        server.add(me, vector)
        masking = masking or seconds
    answered = sorted(server.answered)
    revealed = {me: clients[me].reveal(_NAME, answered, server.dropped) for me in answered}
    unmasking, total = _timed(lambda: server.unmask(revealed, encoding.told(num_clients, 1, "")))
    decoding, _ = _timed(lambda: encoding.decode(total, len(answered) / num_clients))
    peers = num_clients - 1  # keys go up once and come down of all; shares of both secrets go up and down per peer
    small = 2 * keys.PUBLIC_BYTES * (1 + num_clients) + 2 * keys.SEALED_BYTES * peers + keys.DIGEST_BYTES
    small += keys.PROMISE_BYTES * (num_clients + peers)
    small += keys.SEED_SHARE_BYTES * len(answered) + keys.KEY_SHARE_BYTES * len(server.dropped)
    return {
        "client: shares, s": sharing,
        "client: encode and mask, s": masking,
        "server: unmask and decode, s": unmasking + decoding,
        "client: masked update, MB": (4 * num_weights + 8 * encoding.num_wide) / 1e6,
        "client: keys and shares, kB": small / 1e3,
    }


def _record() -> Record:
    known: dict[str, Any] = {}
    return lambda: nullcontext(known)


def _masked(client: ClientSession, encoding: Encoding, trained: Weights, num_clients: int) -> Vector:
    vector = encoding.encode(trained, {"loss": 1.0}, 1 / num_clients, seed=0)
    client.mask(_NAME, vector, encoding.told(num_clients, 1, ""))
    return vector


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    done = work()
    return time.perf_counter() - began, done


if __name__ == "__main__":
    main(measure)
