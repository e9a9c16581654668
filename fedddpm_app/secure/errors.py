"""What goes wrong in a secure sum, and whom the clients accuse of it."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum


class ProtocolError(Exception):
    """A message that the protocol does not allow, or that is damaged; the text is a sentence."""


class WrongShareError(ProtocolError):
    """Clients did not make, or did not reveal, the shares that they had promised; ``clients`` are their ids."""

    def __init__(self, text: str, clients: Iterable[int]) -> None:
        super().__init__(text)
        self.clients = sorted(clients)


class Fault(StrEnum):
    """Why a client cannot use the shares that another one made for it."""

    CHANGED = "were changed on their way"
    FOREIGN = "are those of other clients"
    LENGTH = "have another length"
    NOT_PROMISED = "are not those that it has promised"


_ACCUSATION = re.compile(rf"the shares of client (\d{{1,9}}) (?:{'|'.join(map(re.escape, Fault))})")


def bad_shares(client: int, fault: Fault) -> ProtocolError:
    """Return the error of a client that cannot use the shares of another one, which ``accusers`` recognises."""
    return ProtocolError(f"the shares of client {client} {fault}")


def accusers(reasons: Mapping[int, str], participants: Collection[int]) -> dict[int, int]:
    """Return how many others say that they could not use the shares of a client, by this client.

    ``reasons`` has the reason of each client that sent no update, in its own words. Of itself, or of a client that is
    not among the ``participants``, nobody's word counts.
    """
    said = [(int(found[1]), client) for client, text in reasons.items() if (found := _ACCUSATION.match(text))]
    return Counter(accused for accused, client in said if accused in participants and accused != client)
