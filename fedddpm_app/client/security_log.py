"""A site's security log: with what settings and code a run asked it to work, and what it declined.

``security/run-<id>.jsonl`` in the state folder, for the sites of this host; the id is that of the clients' states, so
that a resumed run appends. A site is a node with a ``data-path`` or with a policy; simulated clients have no log. A
line has neither the values of the run config nor texts of exceptions, which may name files: of these it has the class.
A log that cannot be written costs no round: a warning says so.
"""

import re

from flwr.app import ConfigRecord, Context, Message

from fedddpm_app.client.policy import is_site
from fedddpm_app.client.state import parent_folder
from fedddpm_app.disk.code import describe_code
from fedddpm_app.disk.security import append_entry, entry_of
from fedddpm_app.federation.messages.records import CONFIG, FORGET, SERVER_ROUND, STATE_RUN
from fedddpm_app.progress import logger
from fedddpm_app.secure.errors import ProtocolError
from fedddpm_app.training.declined import DeclinedError

JOINED, DECLINED, REFUSED, FAILED, FORGOT = "joined", "declined", "refused", "failed", "forgot"
_FOLDER = "security"
_RUN_ID = re.compile("[0-9]{1,20}")  # 64 bits
_MARKER = "fedddpm-security-log"  # in the client's context: this SuperNode has written that it joined


class SiteLog:
    """The security log of one client, for one message.

    Parameters
    ----------
    message : Message
        The message; one that names no run, as the first query, is not logged.
    context : Context
        Says with which settings the run asks, and whether the client has joined before.
    partition : int
        The client's partition.
    """

    def __init__(self, message: Message, context: Context, partition: int) -> None:
        self._message, self._context, self._partition = message, context, partition
        self._about = message.content.config_records.get(CONFIG) if is_site(context.node_config) else None

    def join(self) -> None:
        """Write that the client has joined the run, once for each start of its SuperNode."""
        if self._about is None or _MARKER in self._context.state:
            return
        self._context.state[_MARKER] = ConfigRecord({JOINED: True})
        self._add(JOINED, flower_run=str(self._context.run_id), **describe_code(self._context.run_config))

    def answered(self) -> None:
        """Write that the client has removed its state of the run, if it was asked for that."""
        if self._message.metadata.message_type == FORGET:
            self._add(FORGOT)

    def failed(self, error: Exception) -> None:
        """Write that the client declined, refused to do what would break the protocol, or failed."""
        if isinstance(error, DeclinedError):
            self._add(DECLINED, reason=str(error))
        elif isinstance(error, ProtocolError):
            self._add(REFUSED, reason=str(error))
        else:
            self._add(FAILED, reason=type(error).__name__)

    def _add(self, event: str, **facts: object) -> None:
        if self._about is None:
            return
        try:
            folder = parent_folder(str(self._context.node_config.get("state-dir", ""))) / _FOLDER
            path = folder / f"run-{self._run()}.jsonl"
            number = self._about.get(SERVER_ROUND)
            asked = {
                "asked": self._message.metadata.message_type,
                "round": number if isinstance(number, int) else None,
            }
            append_entry(path, entry_of(event, {"partition": self._partition, **asked, **facts}))
        except OSError as error:
            logger.warning("client %d: the security log cannot be written: %s", self._partition, error)

    def _run(self) -> str:
        """Return the run's id as the server names it, or Flower's where that is none: no message keeps a line out."""
        named = str(self._about.get(STATE_RUN)) if self._about else ""
        return named if _RUN_ID.fullmatch(named) else str(self._context.run_id)
