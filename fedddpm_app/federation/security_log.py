"""The server's security log of a run: who joined and left, what was refused, and what was withheld from newcomers.

``security.jsonl`` in the run directory. The file is only appended to, also by a resumed run.
"""

from collections.abc import Callable, Mapping

from fedddpm_app.config import one_line
from fedddpm_app.disk.security import entry_of
from fedddpm_app.federation.messages.replies import ReplyDeclinedError, ReplyRefusedError

SECURITY_LOG = "security.jsonl"

STARTED, RESUMED = "started", "resumed"
JOINED, LEFT = "joined", "left"
NODE_REFUSED, CLAIM_REFUSED = "node-refused", "claim-refused"
REPLY_REFUSED, DECLINED, WITHHELD = "reply-refused", "declined", "withheld"


class SecurityLog:
    """Writes a run's security log.

    Parameters
    ----------
    write : callable, optional
        Appends an object to the file; without it, nothing is kept.
    """

    def __init__(self, write: Callable[[Mapping[str, object]], None] = lambda _: None) -> None:
        self._write = write

    def add(self, event: str, **facts: object) -> None:
        """Append an event with its facts."""
        self._write(entry_of(event, facts))

    def refuse(self, partition: int, error: ReplyRefusedError, server_round: int, **facts: object) -> None:
        """Append that a client's reply was refused, or that it declined, with the reason."""
        event = DECLINED if isinstance(error, ReplyDeclinedError) else REPLY_REFUSED
        self.add(event, partition=partition, round=server_round, reason=one_line(str(error)), **facts)
