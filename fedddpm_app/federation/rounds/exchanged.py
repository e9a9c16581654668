"""The weights that a round's training exchanges with each client, both ways: parts of a model, or another start.

A client that does not get all weights takes the others from the model that it kept after its last accepted reply, see
``AlgorithmDescription.keeps_model``. The change of a returned weight is measured from the value that was sent.
"""

import zlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fedddpm_app.federation.messages.records import ARRAYS
from fedddpm_app.weights import Weights


@dataclass(frozen=True)
class Exchanged:
    """What goes to one client and comes back; None stands for all of the global weights.

    Attributes
    ----------
    sent : frozenset of str or None
        The weights that the client gets.
    returned : frozenset of str or None
        The weights that its reply must have; the client got all of them.
    start : Weights or None
        The values of all weights, in place of the global ones; the client's change is measured from them. Clients with
        the same start should get the same object: it is packed once. A changed start must be a new object.
    """

    sent: frozenset[str] | None = None
    returned: frozenset[str] | None = None
    start: Weights | None = field(default=None, compare=False)

    @property
    def is_partial(self) -> bool:
        """Whether some weights do not go both ways."""
        return self.sent is not None or self.returned is not None

    @property
    def is_whole(self) -> bool:
        """Whether all of the global weights go both ways."""
        return not self.is_partial and self.start is None

    @property
    def key(self) -> Hashable:
        """Equal for clients to which the same is sent, and of which the same is expected."""
        return self.sent, self.returned, id(self.start)

    @property
    def kind(self) -> str:
        """The name under which the norms of these changes are compared with each other."""
        return kind_of(self.returned)


WHOLE = Exchanged()


def kind_of(names: frozenset[str] | None) -> str:
    """Return a name for a part of the weights; ``arrays`` for all of them."""
    return ARRAYS if names is None else f"{ARRAYS}-{zlib.crc32(repr(sorted(names)).encode()):08x}"


def checked_exchanges(
    exchanges: Mapping[int, Exchanged], partitions: Sequence[int], names: Weights, have_models: Sequence[int]
) -> dict[int, Exchanged]:
    """Return the exchange of each partition; one that is not given exchanges everything.

    Parameters
    ----------
    exchanges : mapping of int to Exchanged
        By partition, as ``FederatedStrategy.exchanged`` returns them.
    partitions : sequence of int
        The round's clients.
    names : Weights
        The model's weights.
    have_models : sequence of int
        The partitions that kept a model after an accepted reply.

    Raises
    ------
    ValueError
        When an exchange has unknown names, returns weights that are not sent or no weights at all, or does not send a
        client's first model as a whole.
    """
    found = {}
    for partition in partitions:
        each = exchanges.get(partition, WHOLE)
        sent = names.keys() if each.sent is None else each.sent
        returned = names.keys() if each.returned is None else each.returned
        problem = ""
        if unknown := sorted((set(sent) | set(returned)) - names.keys())[:3]:
            problem = f"the model has no weights {', '.join(unknown)}"
        elif apart := sorted(set(returned) - set(sent))[:3]:
            problem = f"{', '.join(apart)} would be returned, but not sent: send what is returned"
        elif not returned:
            problem = "nothing would be returned: leave the client out of the round"
        elif len(sent) < len(names) and partition not in have_models:
            problem = "it has no model of its own yet: send it all weights"
        if problem:
            raise ValueError(f"exchanged(...)[{partition}]: {problem}.")
        is_partial = len(sent) < len(names) or len(returned) < len(names)
        found[partition] = each if is_partial else replace(WHOLE, start=each.start)
    return found
