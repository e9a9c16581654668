"""A secure sum of a few clients in this process, without messages."""

import contextlib
import math
import secrets
from unittest import mock

import numpy as np

from fedddpm_app.secure import keys
from fedddpm_app.secure.client import ClientSession
from fedddpm_app.secure.masks import Vector
from fedddpm_app.secure.server import ServerSession

SESSION, TOLD = b"a session", b"what all were told"


def vector(*numbers, wide=(7,)):
    """Numbers modulo 2^32, and one modulo 2^64."""
    return Vector(np.array(numbers, np.int64).astype("<u4"), np.array(wide, np.int64).astype("<u8"))


_split = keys.split

# in the place of keys.new_seed and keys.split; each share is as it was promised, and of the right length
LIES = {
    "a long seed": {"new_seed": lambda: secrets.token_bytes(40)},
    "no padding": {"split": lambda *given: [share[:4] + bytes(len(share) - 4) for share in _split(*given)]},
    "one index": {"split": lambda *given: [(1).to_bytes(4, "little") + share[4:] for share in _split(*given)]},
}


@contextlib.contextmanager
def lying(lie, store):
    """Have a client make its shares as a lie says; it masks with a seed of the right length all the same."""
    with mock.patch.multiple(keys, **LIES[lie]):
        yield
    store["seed"] = store["seed"][:32]


class Parties:
    """Clients 0, 1, ... with the numbers of ``values``, and their server; a step leaves out those that are gone.

    ``lies`` has the lies of the clients that lie, each one of ``LIES``.
    """

    def __init__(self, values, share=0.66, lies=None):
        self.values = dict(enumerate(values))
        self.lies = lies or {}
        self.stores = {client: {} for client in self.values}
        self.records = {client: {} for client in self.values}
        self.share = share
        self.server = ServerSession()
        self.uploads = {}

    def client(self, me):
        return ClientSession(
            self.stores[me], me, lambda: contextlib.nullcontext(self.records[me])
        )  # anew for each step, as in another process

    def publish(self, gone=()):
        self.server.public = {c: self.client(c).publish(SESSION, 1) for c in self.values if c not in gone}
        self.server.threshold = max(2, math.ceil(self.share * len(self.server.public)))

    def make_shares(self, gone=()):
        for c in self.server.public.keys() - set(gone):
            with lying(self.lies[c], self.stores[c]) if c in self.lies else contextlib.nullcontext():
                self.server.add_shares(c, self.client(c).share(SESSION, self.server.public, self.server.threshold))

    def upload(self, gone=()):
        for c in self.server.sealed.keys() - set(gone):
            self.receive(c)
            masked = Vector(self.values[c].narrow.copy(), self.values[c].wide.copy())
            self.client(c).mask(SESSION, masked, TOLD)
            self.uploads[c] = masked
            self.server.add(c, masked)

    def receive(self, client):
        self.client(client).receive(SESSION, self.server.sealed_for(client), self.server.promised_to(client))

    def reveal(self, gone=()):
        lists = sorted(self.server.answered), self.server.dropped
        return {c: self.client(c).reveal(SESSION, *lists) for c in self.server.answered - set(gone)}

    def until_upload(self, gone=()):
        self.publish()
        self.make_shares()
        self.upload(gone)
        return self


def signed(total):
    return [*map(int, total.narrow.view("<i4"))], [*map(int, total.wide.view("<i8"))]
