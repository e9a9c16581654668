"""The client's answers to the messages of secure aggregation: see ``fedddpm_app.secure``.

The secrets are in ``context.state``, because the messages of one client may go to different processes. They are small,
and are removed when the client has masked its update. Which step the client has done is in its ``RunRecord``.
"""

import types
from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import ConfigRecord, Context, Message

from fedddpm_app.client.record import RunRecord
from fedddpm_app.config import Config, ConfigError
from fedddpm_app.federation.messages.records import (
    KEYS,
    MASKED,
    NUM_EXAMPLES,
    REVEALED,
    SECURE,
    SECURE_KEYS,
    SECURE_REVEAL,
    SECURE_SHARES,
    SHARES,
    UNMASKED,
)
from fedddpm_app.secure import keys
from fedddpm_app.secure.client import ClientSession, PublicKeys
from fedddpm_app.secure.encoding import Encoding
from fedddpm_app.secure.errors import ProtocolError
from fedddpm_app.secure.rows import from_rows, to_rows
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.actions import ActionAnswer
from fedddpm_app.training.hooks import TrainingHook, TrainResult
from fedddpm_app.weights import Weights

_STORE = "fedddpm-secure"
Answering = Callable[[ClientSession, Config, Weights, Callable[[], int]], ActionAnswer]


def open_session(config: Config, context: Context, partition: int) -> ClientSession:
    """Return the client's session as the last message left it."""
    if _STORE not in context.state:
        context.state[_STORE] = ConfigRecord()
    record = RunRecord(config, context, partition)
    return ClientSession(context.state.config_records[_STORE], partition, record.secure_steps)


def _publish(session: ClientSession, config: Config, sent: Weights, num_examples: Callable[[], int]) -> ActionAnswer:
    """Answer with new public keys, and the number of training images."""
    count = num_examples()
    public = session.publish(_name(sent), count)
    rows = {"mask": to_rows([public.mask], keys.PUBLIC_BYTES), "seal": to_rows([public.seal], keys.PUBLIC_BYTES)}
    return ActionAnswer({NUM_EXAMPLES: count}, {KEYS: rows})


def _share(session: ClientSession, config: Config, sent: Weights, _: Callable[[], int]) -> ActionAnswer:
    """Answer with the shares for each peer, in the order of the peers."""
    rows = zip(sent["clients"].tolist(), from_rows(sent["mask"]), from_rows(sent["seal"]), strict=True)
    public = {client: PublicKeys(mask, seal) for client, mask, seal in rows}
    made = session.share(_name(sent), public, config.secure.needed(len(public)))
    rows_of = {
        "sealed": to_rows([made.sealed[peer] for peer in sorted(made.sealed)], keys.SEALED_BYTES),
        "promises": to_rows([made.promises[client] for client in sorted(made.promises)], keys.PROMISE_BYTES),
        "digest": to_rows([made.digest], keys.DIGEST_BYTES),
    }
    return ActionAnswer({}, {SHARES: rows_of})


def _reveal(session: ClientSession, config: Config, sent: Weights, _: Callable[[], int]) -> ActionAnswer:
    """Answer with one share of one secret of each client."""
    seeds, of_keys = session.reveal(_name(sent), sent["answered"].tolist(), sent["dropped"].tolist())
    rows = {"seeds": to_rows(seeds, keys.SEED_SHARE_BYTES), "keys": to_rows(of_keys, keys.KEY_SHARE_BYTES)}
    return ActionAnswer({}, {REVEALED: rows})


STEPS: Mapping[str, Answering] = types.MappingProxyType(
    {SECURE_KEYS: _publish, SECURE_SHARES: _share, SECURE_REVEAL: _reveal}
)


class Masking:
    """The masking of one training's result.

    Parameters
    ----------
    config : Config
        The run's config.
    message : Message
        The request to train, with the shares of the peers.
    session : ClientSession
        The client's session.

    Raises
    ------
    ProtocolError
        If the server asks for an update without a mask, or in another session; nothing is trained then.
    """

    def __init__(self, config: Config, message: Message, session: ClientSession) -> None:
        given: Any = message.content.config_records.get(SECURE)
        if given is None:
            raise ProtocolError("secure-aggregation = true, but the server asks for an update without a mask")
        self._config, self._session = config, session
        self._name, self._total, self._metrics = given["session"], int(given["total"]), [*given["metrics"]]
        self._num_clients = len(given["senders"]) + 1
        sealed, promised = (dict(zip(given["senders"], given[key], strict=True)) for key in ("sealed", "promised"))
        session.receive(self._name, sealed, promised)
        if not session.num_examples <= self._total:
            raise ProtocolError(f"all clients together have {self._total} images, fewer than this one")

    def answer(self, result: TrainResult, num_examples: int, hook: TrainingHook) -> ActionAnswer:
        """Return the masked change of the weights and of the metrics, except ``UNMASKED``.

        Raises
        ------
        ConfigError
            If the algorithm sends records that nothing would mask.
        ProtocolError
            If the number of images has changed, or a value is not finite.
        """
        if hook.sent:
            raise ConfigError(
                f'algorithm = "{self._config.run.algorithm}" sends {", ".join(hook.sent)} besides the weights, which '
                "no mask would hide: use secure-aggregation = false."
            )
        if num_examples != self._session.num_examples:
            raise ProtocolError(f"it has {num_examples} images now, and said {self._session.num_examples} before")
        where = hook.round
        encoding = Encoding(where.global_weights, self._metrics, self._config.secure.clip, self._num_clients)
        seed = derive_seed(self._config.run.seed, "secure-rounding", where.server_round, where.partition_id)
        measured = {**result.metrics(), **hook.metrics}
        vector = encoding.encode(result.weights, measured, num_examples / self._total, seed)
        told = encoding.told(self._total, where.server_round, self._config.about_training)
        self._session.mask(self._name, vector, told)
        plain = {name: value for name, value in measured.items() if name in UNMASKED}
        return ActionAnswer({NUM_EXAMPLES: num_examples, **plain}, {MASKED: vector.to_tensors()})


def _name(sent: Weights) -> bytes:
    return from_rows(sent["session"])[0]
