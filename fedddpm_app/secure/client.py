"""The client's end: four steps in a fixed order, each of which a session allows once.

A server that could repeat a step with other content would learn single updates: two uploads under one mask differ by
the update alone, and shares of both secrets of one client unmask it. So the step, and what was revealed, are in a
record that does not go back when the store does, and a new session makes new keys.
"""

import hashlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from fedddpm_app.secure import keys
from fedddpm_app.secure.errors import Fault, ProtocolError, bad_shares
from fedddpm_app.secure.keys import KeyPair
from fedddpm_app.secure.masks import Vector, add_mask

_STEP, _ID, _KEYS, _REVEALED = "step", "session", "keys", "revealed"
_SECRETS = ("mask-private", "seal-private", "seed")


Record = Callable[[], AbstractContextManager[dict[str, Any]]]


@dataclass(frozen=True)
class PublicKeys:
    """The public halves of a client's two key pairs: of the masks, and of the encryption of shares."""

    mask: bytes
    seal: bytes


@dataclass(frozen=True)
class Shares:
    """What a client gives away of its secrets in step 2.

    Attributes
    ----------
    sealed : dict of int to bytes
        For each peer, its shares of both secrets, which only it can open.
    promises : dict of int to bytes
        For each client, this one included, the digests of its shares.
    digest : bytes
        Of the seed.
    """

    sealed: dict[int, bytes]
    promises: dict[int, bytes]
    digest: bytes


class ClientSession:
    """A client's part in one secure sum.

    Parameters
    ----------
    store : mutable mapping
        Keeps numbers, bytes and lists of them between the steps, maybe in another process.
    me : int
        The client's id among the clients of the sum, from 0.
    record : callable
        Gives a dict, to be read and changed by one process at a time: the step of the client's last session. The store
        may be that of an earlier message; the record is never.
    """

    def __init__(self, store: MutableMapping[str, Any], me: int, record: Record) -> None:
        self._store = store
        self._me = me
        self._record = record

    @property
    def num_examples(self) -> int:
        """The examples that the client said it has."""
        return int(self._store["num-examples"])

    def publish(self, session: bytes, num_examples: int) -> PublicKeys:
        """Begin a session with new keys, and forget the one before; return what the others may know (step 1)."""
        mask, seal = KeyPair.generate(), KeyPair.generate()
        self._store.clear()
        self._store.update(
            {
                _ID: session,
                "num-examples": num_examples,
                "mask-private": mask.private,
                "mask-public": mask.public,
                "seal-private": seal.private,
                "seal-public": seal.public,
            }
        )
        with self._record() as known:
            known.clear()
            known.update({_KEYS: self._keys(), _STEP: 1})
        return PublicKeys(mask.public, seal.public)

    def share(self, session: bytes, public: Mapping[int, PublicKeys], threshold: int) -> Shares:
        """Return the shares of both secrets (step 2).

        Parameters
        ----------
        session : bytes
            The session's name.
        public : mapping of int to PublicKeys
            Of all clients with keys, this one included.
        threshold : int
            The shares that give a secret back, more than half of the clients.
        """
        self._enter(2, session)
        everyone, store = sorted(public), self._store
        if public.get(self._me) != PublicKeys(store["mask-public"], store["seal-public"]):
            raise ProtocolError("the server's list of keys does not have this client's own keys")
        if not len(everyone) / 2 < threshold <= len(everyone) or threshold < 2:
            raise ProtocolError(f"{len(everyone)} clients with keys are too few for a sum that {threshold} unmask")
        seed = keys.new_seed()
        of_seed = keys.split(seed, threshold, len(everyone))
        of_key = keys.split(store["mask-private"], threshold, len(everyone))
        sealed, promises = {}, {}
        for place, peer in enumerate(everyone):
            promises[peer] = keys.promise(of_seed[place], of_key[place])
            if peer != self._me:
                key = keys.shared_key(store["seal-private"], public[peer].seal)
                sealed[peer] = keys.seal(key, self._me, peer, of_seed[place], of_key[place])
        store.update(
            {
                "seed": seed,
                "threshold": threshold,
                "participants": everyone,
                "masks-public": [public[peer].mask for peer in everyone],
                "seals-public": [public[peer].seal for peer in everyone],
                "own-share": of_seed[everyone.index(self._me)],
            }
        )
        return Shares(sealed, promises, keys.digest(seed))

    def receive(self, session: bytes, sealed: Mapping[int, bytes], promised: Mapping[int, bytes]) -> None:
        """Open the shares that the peers made for this client; the training may begin (step 3).

        Both are by the client that made them: those with which this client has masks in common. A share that is not the
        promised one is refused here, so that the server can tell later who has lied about it.
        """
        self._enter(3, session)
        store, place = self._store, {peer: at for at, peer in enumerate(self._store["participants"])}
        senders = sorted({*sealed, self._me})
        if self._me in sealed or not set(senders) <= place.keys() or len(senders) < store["threshold"]:
            raise ProtocolError(f"shares came from {len(senders) - 1} peers that this client does not expect so")
        opened = {self._me: (store["own-share"], b"")}
        for peer, token in sealed.items():
            key = keys.shared_key(store["seal-private"], store["seals-public"][place[peer]])
            opened[peer] = keys.unseal(key, token, peer, self._me)
            if keys.promise(*opened[peer]) != promised.get(peer):
                raise bad_shares(peer, Fault.NOT_PROMISED)
        store.update(
            {
                "senders": senders,
                "seed-shares": [opened[peer][0] for peer in senders],
                "key-shares": [opened[peer][1] for peer in senders],
            }
        )

    def mask(self, session: bytes, vector: Vector, told: bytes) -> None:
        """Add this client's masks to its numbers in place, and forget the secrets (step 3, after the training).

        ``told`` is ``Encoding.told``: the masks of clients that were told different things do not cancel.
        """
        self._enter(4, session)
        store, place = self._store, {peer: at for at, peer in enumerate(self._store["participants"])}
        add_mask(vector, store["seed"])
        for peer in store["senders"]:
            if peer != self._me:
                seed = keys.shared_seed(store["mask-private"], store["masks-public"][place[peer]], told)
                add_mask(vector, seed, subtract=peer < self._me)
        for name in _SECRETS:
            del store[name]

    def reveal(
        self, session: bytes, answered: Sequence[int], dropped: Sequence[int]
    ) -> tuple[list[bytes], list[bytes]]:
        """Return the shares of the seeds of those whose numbers arrived, and of the keys of the others (step 4).

        Raises
        ------
        ProtocolError
            If both shares of a client would become known, or too few clients are in the sum.
        """
        store, lists = self._store, [[*answered], [*dropped]]
        with self._record() as known:
            again = known.get(_STEP) == 5 and self._is_session(known, session)
            if again and known[_REVEALED] != lists:
                raise ProtocolError("it has revealed its shares for other clients already, and never reveals both")
            if not again:
                self._enter_in(known, 5, session)
            together = sorted([*answered, *dropped])
            fits = together == store["senders"] and self._me in answered and len(answered) >= store["threshold"]
            known.update({_REVEALED: lists} if fits else {_STEP: 6})  # nothing is revealed in it any more
        if not fits:
            raise ProtocolError(
                f"a sum of {len(answered)} clients without {len(dropped)} others is not one that this client takes "
                f"part in: it has {len(store['senders'])} clients, at least {store['threshold']} of them in the sum"
            )
        place = {peer: at for at, peer in enumerate(store["senders"])}
        seeds = [store["seed-shares"][place[peer]] for peer in answered]
        return seeds, [store["key-shares"][place[peer]] for peer in dropped]

    def _enter(self, step: int, session: bytes) -> None:
        """Go to the next step, which can be done once."""
        with self._record() as known:
            self._enter_in(known, step, session)

    def _enter_in(self, known: dict[str, Any], step: int, session: bytes) -> None:
        if not self._is_session(known, session):
            raise ProtocolError("it does not know this session: it was restarted, or another session has begun")
        if known[_STEP] != step - 1:
            raise ProtocolError(f"step {step} of a secure sum follows on step {step - 1}, not on {known[_STEP]}")
        known[_STEP] = step

    def _is_session(self, known: Mapping[str, Any], session: bytes) -> bool:
        """Return whether the store has the session of this name, and the record the step of that session."""
        return self._store.get(_ID) == session and known.get(_KEYS) == self._keys()

    def _keys(self) -> str:
        """Return what names the session in the record: its public key, which is new in each one."""
        return hashlib.sha256(self._store["mask-public"]).hexdigest()
