"""The training of a round whose updates are masked: see ``fedddpm_app.secure`` for the protocol.

Before the weights go out, the clients exchange keys and shares; after the masked updates have come back, the clients
that sent one reveal what removes the masks of the sum. ``aggregate`` of the algorithm gets one reply, which is the
clients' weighted mean. A client that is lost before its update is in the sum is left out. With too few clients, or
shares that do not fit, the round is repeated with new keys, and without the client that made these shares: else one
client could end the run.
"""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedddpm_app.config import ConfigError
from fedddpm_app.federation.errors import TooFewRepliesError
from fedddpm_app.federation.messages.messaging import exchange
from fedddpm_app.federation.messages.records import (
    ARRAYS,
    KEYS,
    MASKED,
    REVEALED,
    SECURE,
    SECURE_KEYS,
    SECURE_REVEAL,
    SECURE_SHARES,
    SHARES,
    UNMASKED,
)
from fedddpm_app.federation.messages.replies import Reply, ReplyRefusedError, ReplySpec, mean_reply
from fedddpm_app.federation.messages.streaming import ReplyStream, collecting, with_progress
from fedddpm_app.federation.rounds.training import RoundTraining
from fedddpm_app.progress import logger
from fedddpm_app.secure import keys
from fedddpm_app.secure.client import PublicKeys, Shares
from fedddpm_app.secure.encoding import CLIPPED, Encoding
from fedddpm_app.secure.errors import ProtocolError, WrongShareError, accusers
from fedddpm_app.secure.masks import Vector
from fedddpm_app.secure.rows import from_rows, rows_like, to_rows
from fedddpm_app.secure.server import ServerSession
from fedddpm_app.weights import Weights

if TYPE_CHECKING:
    from fedddpm_app.federation.strategy import FederatedStrategy

_NAME_BYTES = 16
_LEAST_ACCUSERS = 2  # a client alone could accuse another one


class SecureTraining(RoundTraining):
    """One attempt at the training of a round, with masked updates; parameters as of ``RoundTraining``."""

    def __init__(self, strategy: "FederatedStrategy", server_round: int) -> None:
        super().__init__(strategy, server_round)
        self._session, self._name = ServerSession(), secrets.token_bytes(_NAME_BYTES)
        self._sizes: dict[int, int] = {}
        self._refused: dict[int, str] = {}
        self._has_excluded = False

    def messages(self, arrays: ArrayRecord) -> list[Message]:
        """Sample clients, have them exchange keys and shares, and return the messages with the weights for them."""
        messages = super().messages(arrays)
        node_of = self._strategy.clients.participants.node_of
        client_at = {node_of[client]: client for client in self._session.sealed}
        for message in messages:  # they share their records, but each has its own content
            client = client_at[message.metadata.dst_node_id]
            sealed, promised = self._session.sealed_for(client), self._session.promised_to(client)
            self._strategy.accounting.bytes_down += sum(map(len, [*sealed.values(), *promised.values()]))
            given = ConfigRecord({"session": self._name, "metrics": self._metrics, "total": self._total})
            given["senders"], given["sealed"], given["promised"] = [*sealed], [*sealed.values()], [*promised.values()]
            message.content = RecordDict({**message.content, SECURE: given})
        return messages

    def asked(self) -> list[int]:
        """Return the sampled clients that have made shares of their secrets.

        Raises
        ------
        ConfigError
            If the algorithm wants records that nothing would mask.
        TooFewRepliesError
            If they are too few.
        """
        if further := sorted(self._strategy.reply_references.keys() - {ARRAYS}):
            raise ConfigError(
                f'algorithm = "{self._strategy.config.run.algorithm}" has clients send {further[0]} besides their '
                "weights, which no mask would hide: use secure-aggregation = false."
            )
        self._collect_keys()
        self._collect_shares()
        return sorted(self._session.sealed)

    def aggregate(self, replies: Iterable[Message]) -> tuple[Weights, MetricRecord]:
        """Return the aggregated weights and the mean metrics of the clients whose updates are in the sum."""
        strategy, session = self._strategy, self._session
        encoding = Encoding(strategy.global_weights, self._metrics, strategy.config.secure.clip, len(session.sealed))
        accepted = self._add_updates(replies, encoding)
        strategy.accounting.images += sum(self._images(reply) for reply in accepted)
        share = sum(self._sizes[client] for client in session.answered) / self._total
        told = encoding.told(self._total, self._round, strategy.config.about_training)
        weights, means = encoding.decode(self._unmasked(told), share)
        if not encoding.fits(means, len(accepted), share):
            problem = (
                "the masks of the sum do not cancel: do all hosts run the same version of the app, or does a client "
                "send other numbers than an update?"
            )
            raise self._too_few(problem)
        images = sum(reply.num_examples for reply in accepted)
        for name in self._unmasked_metrics:
            means[name] = sum(reply.number(name) * reply.num_examples for reply in accepted) / images
        self._record(means[CLIPPED], encoding.bound(len(accepted), share))
        metrics = {name: means[name] for name in strategy.train_metrics}
        mean = mean_reply(weights, strategy.global_weights, metrics, images)
        aggregated = strategy.aggregate(self._round, iter([mean]))
        return self.finish(aggregated, accepted, [mean], self._left_out)

    @property
    def _metrics(self) -> list[str]:
        """The metrics that are masked."""
        return [name for name in self._strategy.train_metrics if name not in UNMASKED]

    @property
    def _unmasked_metrics(self) -> list[str]:
        """The metrics that each client reports as they are."""
        return [name for name in self._strategy.train_metrics if name in UNMASKED]

    @property
    def _total(self) -> int:
        """The images of all clients that have made shares."""
        return sum(self._sizes[client] for client in self._session.sealed)

    @property
    def _left_out(self) -> dict[str, object]:
        reasons = {str(client): reason for client, reason in sorted(self._refused.items())}
        return {"train/left_out": reasons} if reasons else {}

    def _collect_keys(self) -> None:
        """Ask the sampled clients for new public keys (step 1)."""
        like = dict.fromkeys(("mask", "seal"), rows_like(1, keys.PUBLIC_BYTES))
        for reply in self._ask(SECURE_KEYS, self._strategy.sampled, {}, KEYS, like, _check_keys, counts_examples=True):
            rows = reply.load(KEYS)
            self._sizes[reply.partition_id] = reply.num_examples
            self._strategy.clients.admission.learn_size(reply)
            public = PublicKeys(from_rows(rows["mask"])[0], from_rows(rows["seal"])[0])
            self._session.public[reply.partition_id] = public
        self._session.threshold = self._strategy.config.secure.needed(len(self._session.public))
        self._check_enough(len(self._session.public), "sent keys")

    def _collect_shares(self) -> None:
        """Pass the public keys on, and ask for shares of every client's secrets (step 2)."""
        clients = sorted(self._session.public)
        public = [self._session.public[client] for client in clients]
        sent = {
            "clients": torch.tensor(clients),
            "mask": to_rows([each.mask for each in public], keys.PUBLIC_BYTES),
            "seal": to_rows([each.seal for each in public], keys.PUBLIC_BYTES),
        }
        like = {
            "sealed": rows_like(len(clients) - 1, keys.SEALED_BYTES),
            "promises": rows_like(len(clients), keys.PROMISE_BYTES),
            "digest": rows_like(1, keys.DIGEST_BYTES),
        }
        for reply in self._ask(SECURE_SHARES, clients, sent, SHARES, like):
            rows, me = reply.load(SHARES), reply.partition_id
            peers = [client for client in clients if client != me]
            sealed = dict(zip(peers, from_rows(rows["sealed"]), strict=True))
            promises = dict(zip(clients, from_rows(rows["promises"]), strict=True))
            self._session.add_shares(me, Shares(sealed, promises, from_rows(rows["digest"])[0]))
        self._check_enough(len(self._session.sealed), "shared their secrets")

    def _add_updates(self, replies: Iterable[Message], encoding: Encoding) -> list[Reply]:
        """Add the masked updates as they arrive (step 3); return the replies without them, by partition id."""
        strategy, asked = self._strategy, sorted(self._session.sealed)
        zeros = Vector.zeros(encoding.num_narrow, encoding.num_wide).to_tensors()
        like = {name: tensor.to("meta") for name, tensor in zeros.items()}
        expected = {MASKED: strategy.transport.expect(like)}
        spec = ReplySpec(expected, self._unmasked_metrics, self._check_size, server_round=self._round)
        stream = ReplyStream(strategy.clients, replies, asked, f"round {self._round}", spec)
        accepted: list[Reply] = []
        arrived = collecting(stream.as_they_come(), accepted)
        num_rounds = strategy.config.run.num_rounds
        for reply in with_progress(strategy.grid.run, arrived, "train", self._round, num_rounds):
            self._session.add(reply.partition_id, Vector.from_tensors(reply.load(MASKED)))
        self._refused |= stream.refused
        self._exclude_accused(stream.refused)
        strategy.clients.declined |= stream.declined
        self._check_enough(len(accepted), "returned a masked update")
        return sorted(accepted, key=lambda reply: reply.partition_id)

    def _unmasked(self, told: bytes) -> Vector:
        """Have the clients reveal shares, and return the sum of their updates (step 4)."""
        session = self._session
        answered, dropped = sorted(session.answered), session.dropped
        sent = {"answered": torch.tensor(answered), "dropped": torch.tensor(dropped, dtype=torch.int64)}
        like = {
            "seeds": rows_like(len(answered), keys.SEED_SHARE_BYTES),
            "keys": rows_like(len(dropped), keys.KEY_SHARE_BYTES),
        }
        revealed = {}
        for reply in self._ask(SECURE_REVEAL, answered, sent, REVEALED, like, leaves_out=False):
            rows = reply.load(REVEALED)
            revealed[reply.partition_id] = from_rows(rows["seeds"]), from_rows(rows["keys"])
        try:
            total = session.unmask(revealed, told)
            self._exclude(session.liars, f"round {self._round}: it revealed other shares than those that it was given")
            return total
        except ProtocolError as error:
            if isinstance(error, WrongShareError):
                self._refused |= dict.fromkeys(error.clients, str(error))
                self._exclude(error.clients, str(error))
            raise self._too_few(f"the masks of {len(answered)} updates cannot be removed: {error}") from error

    def _ask(
        self,
        step: str,
        clients: Sequence[int],
        sent: Weights,
        record: str,
        like: Weights,
        check: Callable[[Reply], None] | None = None,
        *,
        counts_examples: bool = False,
        leaves_out: bool = True,
    ) -> list[Reply]:
        """Send one message of the protocol to clients, and return the replies with a record like ``like``."""
        strategy, timeout = self._strategy, self._strategy.config.waiting.round_timeout
        packed = strategy.transport.pack({"session": to_rows([self._name], _NAME_BYTES), **sent})
        expected = {record: strategy.transport.expect(like)}
        spec = ReplySpec(expected, (), check, counts_examples=counts_examples, server_round=self._round)
        messages = strategy.clients.address(clients, step, {ARRAYS: packed}, self._round, timeout)
        replies = exchange(strategy.grid, messages, timeout, strategy.clients.participants.under_way)
        stream = ReplyStream(
            strategy.clients, replies, clients, f"round {self._round}, secure aggregation ({record})", spec
        )
        try:
            return [*stream.as_they_come()]
        finally:
            strategy.transport.release(packed)
            strategy.clients.declined |= stream.declined
            self._refused |= stream.refused if leaves_out else {}

    def _exclude_accused(self, refused: Mapping[int, str]) -> None:
        """Exclude a client whose shares several others could not use, and therefore sent no update."""
        for client, count in accusers(refused, self._session.sealed.keys()).items():
            if count >= _LEAST_ACCUSERS:
                self._refused[client] = (
                    f"the shares of client {client} were not as promised, or changed, for {count} clients"
                )
                self._exclude([client], self._refused[client])

    def _exclude(self, clients: Iterable[int], reason: str) -> None:
        """Ask clients for nothing in the rounds any more, as those that have declined."""
        for client in sorted(clients):
            self._has_excluded = True
            self._strategy.clients.declined.add(client)
            self._strategy.clients.log.refuse(client, ReplyRefusedError(reason), self._round)

    def _check_size(self, reply: Reply) -> None:
        """Raise ``ReplyRefusedError`` for an update of another weight than agreed."""
        if reply.num_examples != self._sizes[reply.partition_id]:
            raise ReplyRefusedError(f"it said that it has {self._sizes[reply.partition_id]} images, not as many as now")

    def _check_enough(self, count: int, did: str) -> None:
        """Raise ``TooFewRepliesError`` if fewer clients than ``secure-threshold`` and ``min-replies`` are left."""
        config, sampled = self._strategy.config, len(self._strategy.sampled)
        quorum = self.quorum()
        needed = max(self._session.threshold, quorum)
        if count < needed:
            key = f"min-replies = {config.waiting.min_replies}"
            if quorum < needed:
                key = f"secure-threshold = {config.secure.threshold}"
            raise self._too_few(f"{count or 'none'} of the {sampled} clients {did}, fewer than the {needed} of {key}")

    def _too_few(self, problem: str) -> TooFewRepliesError:
        self._strategy.round_log.add(self._left_out)
        first = next((f"; client {client}: {reason}" for client, reason in sorted(self._refused.items())), "")
        return TooFewRepliesError(f"round {self._round}: {problem}{first}", has_excluded=self._has_excluded)

    def _record(self, clipped: float, bound: float) -> None:
        """Add the values of the round's line, and warn of clipped updates."""
        clip, recovered = self._strategy.config.secure.clip, self._session.dropped
        self._strategy.record(**{"secure/clipped_share": clipped, "secure/rounding_bound": bound})
        if recovered:
            self._strategy.record(**{"secure/recovered": recovered})
        if clipped > 0:
            text = "round %d: %.3g %% of the values of the updates were clipped to secure-clip = %g: use a larger one"
            logger.warning(text, self._round, 100 * clipped, clip)


def _check_keys(reply: Reply) -> None:
    """Refuse keys that no other client could use: else all the others would fail."""
    try:
        for rows in reply.load(KEYS).values():
            keys.check_public(from_rows(rows)[0])
    except ProtocolError as error:
        raise ReplyRefusedError(str(error)) from error
