"""The server's end: it passes keys and shares on, adds masked numbers, and removes the masks that do not cancel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fedddpm_app.secure import keys
from fedddpm_app.secure.client import PublicKeys
from fedddpm_app.secure.keys import ProtocolError, WrongShareError
from fedddpm_app.secure.masks import Vector, add_mask


@dataclass
class ServerSession:
    """One secure sum.

    Attributes
    ----------
    public : dict of int to PublicKeys
        The keys of each client, by its id.
    sealed : dict of int to dict of int to bytes
        By the client that made them, the shares for each of its peers.
    digests : dict of int to bytes
        Of each client's seed.
    answered : set of int
        The clients whose numbers are in the sum.
    threshold : int
        The shares that give a secret back; set before the clients share.
    """

    public: dict[int, PublicKeys] = field(default_factory=dict)
    sealed: dict[int, dict[int, bytes]] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    threshold: int = 2
    _total: Vector | None = None
    _first: int = 0  # the place of the first share of those that have fitted last

    def sealed_for(self, client: int) -> dict[int, bytes]:
        """Return the shares that others made for a client, by the client that made them."""
        return {sender: shares[client] for sender, shares in sorted(self.sealed.items()) if sender != client}

    @property
    def dropped(self) -> list[int]:
        """The clients that made shares, and whose numbers are not in the sum."""
        return sorted(self.sealed.keys() - self.answered)

    def add(self, client: int, masked: Vector) -> None:
        """Add a client's masked numbers."""
        if self._total is None:
            self._total = Vector.zeros(len(masked.narrow), len(masked.wide))
        self._total.add(masked)
        self.answered.add(client)

    def unmask(self, revealed: Mapping[int, tuple[Sequence[bytes], Sequence[bytes]]], told: bytes) -> Vector:
        """Return the sum of the numbers of the clients that answered.

        Parameters
        ----------
        revealed : mapping of int to pair of lists
            By the client that reveals, its shares of the seeds of ``answered`` and of the keys of ``dropped``, both in
            ascending order of the clients.
        told : bytes
            As of ``ClientSession.mask``.

        Raises
        ------
        ProtocolError
            If shares are too few, or do not fit; the sum is then lost.
        """
        total, answered, dropped = self._total, sorted(self.answered), self.dropped
        if total is None or len(revealed) < self.threshold:
            raise ProtocolError(f"{len(revealed)} clients revealed shares, and {self.threshold} are needed")
        shares = [revealed[client] for client in sorted(revealed)]
        for place, client in enumerate(answered):
            promised = self.digests[client]
            seed = self._restored([seeds[place] for seeds, _ in shares], lambda it: keys.digest(it) == promised)  # noqa: B023
            if seed is None:
                raise WrongShareError(f"the shares of client {client} do not give the seed that it promised", client)
            add_mask(total, seed, subtract=True)
        for place, client in enumerate(dropped):
            known = self.public[client].mask
            private = self._restored([each[place] for _, each in shares], lambda it: keys.public_key_of(it) == known)  # noqa: B023
            if private is None:
                reason = f"the shares of client {client} do not give the key that belongs to its public one"
                raise WrongShareError(reason, client)
            for peer in answered:
                add_mask(total, keys.shared_seed(private, self.public[peer].mask, told), subtract=client > peer)
        return total

    def _restored(self, shares: Sequence[bytes], fits: Callable[[bytes], bool]) -> bytes | None:
        """Return the secret of some ``threshold`` neighbouring shares that fit, in a circle, or None.

        A client that reveals a wrong share is thus passed over, where one more than ``threshold`` reveal. The next
        secret is tried with the same clients first, so that a liar is passed over once, and not for each secret.
        """
        for offset in range(len(shares)):
            start = (self._first + offset) % len(shares)
            try:
                secret = keys.combine([*shares[start:], *shares[:start]], self.threshold)
                if fits(secret):
                    self._first = start
                    return secret
            except ProtocolError:
                continue
        return None
