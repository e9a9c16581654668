"""The server's end: it passes keys and shares on, adds masked numbers, and removes the masks that do not cancel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedddpm_app.secure import keys
from fedddpm_app.secure.client import PublicKeys, Shares
from fedddpm_app.secure.errors import ProtocolError, WrongShareError
from fedddpm_app.secure.masks import SEED_BYTES, Vector, add_mask


@dataclass
class ServerSession:
    """One secure sum.

    Attributes
    ----------
    public : dict of int to PublicKeys
        The keys of each client, by its id.
    sealed : dict of int to dict of int to bytes
        By the client that made them, the shares for each of its peers.
    promises : dict of int to dict of int to bytes
        By the client that made them, the digests of the shares of each client, itself included.
    digests : dict of int to bytes
        Of each client's seed.
    answered : set of int
        The clients whose numbers are in the sum.
    threshold : int
        The shares that give a secret back; set before the clients share.
    liars : set of int
        The clients that have revealed a share which they were not given.
    """

    public: dict[int, PublicKeys] = field(default_factory=dict)
    sealed: dict[int, dict[int, bytes]] = field(default_factory=dict)
    promises: dict[int, dict[int, bytes]] = field(default_factory=dict)
    digests: dict[int, bytes] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    threshold: int = 2
    liars: set[int] = field(default_factory=set)
    _total: Vector | None = None

    def add_shares(self, client: int, shares: Shares) -> None:
        """Add the shares that a client has made."""
        self.sealed[client], self.promises[client] = shares.sealed, shares.promises
        self.digests[client] = shares.digest

    def promised_to(self, client: int) -> dict[int, bytes]:
        """Return the digests of the shares of ``sealed_for``."""
        return {sender: self.promises[sender][client] for sender in self.sealed_for(client)}

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
            If shares are too few.
        WrongShareError
            If too few are the promised ones, or those that a client has promised do not give its secret.
        """
        total, answered, dropped = self._total, sorted(self.answered), self.dropped
        if total is None or len(revealed) < self.threshold:
            raise ProtocolError(f"{len(revealed)} clients revealed shares, and {self.threshold} are needed")
        for place, client in enumerate(answered):
            seed = self._restored(client, {at: seeds[place] for at, (seeds, _) in revealed.items()}, of_key=False)
            if len(seed) != SEED_BYTES or keys.digest(seed) != self.digests[client]:
                raise WrongShareError(f"the shares of client {client} do not give the seed that it promised", [client])
            add_mask(total, seed, subtract=True)
        for place, client in enumerate(dropped):
            private = self._restored(client, {at: each[place] for at, (_, each) in revealed.items()}, of_key=True)
            if not _is_key(private, self.public[client].mask):
                reason = f"the shares of client {client} do not give the key that belongs to its public one"
                raise WrongShareError(reason, [client])
            for peer in answered:
                add_mask(total, keys.shared_seed(private, self.public[peer].mask, told), subtract=client > peer)
        return total

    def _restored(self, client: int, shares: Mapping[int, bytes], *, of_key: bool) -> bytes:
        """Return the secret of a client from the shares that are the promised ones; remember who revealed others."""
        promises = self.promises[client]
        wrong = {at for at, share in shares.items() if not keys.keeps_promise(share, promises[at], of_key=of_key)}
        self.liars |= wrong
        good = [share for at, share in sorted(shares.items()) if at not in wrong]
        if len(good) < self.threshold:
            reason = (
                f"{len(good)} of the shares of client {client} are those that it made, and {self.threshold} are needed"
            )
            raise WrongShareError(reason, wrong)
        try:
            return keys.combine(good, self.threshold)
        except ProtocolError as error:  # only the client itself has promised them
            raise WrongShareError(f"the shares of client {client} do not belong together", [client]) from error


def _is_key(private: bytes, public: bytes) -> bool:
    try:
        return keys.public_key_of(private) == public
    except ProtocolError:
        return False
