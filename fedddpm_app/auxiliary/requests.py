"""Requests to clients for images of the auxiliary set: the clients' shares, and the order of the requests."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import Message
from torch import Tensor

from fedddpm_app.auxiliary.uploads import PretrainedModel
from fedddpm_app.diffusion.sampling import SampleBatch
from fedddpm_app.transport import Packed

# The model travels with every message, so several batches share a message. Their number is small, so that a client's
# batches spread over idle actors, a stop loses little, and few images are in memory.
_BATCHES_PER_MESSAGE = 4
_MESSAGES_PER_CLIENT = 2


@dataclass
class ClientShare:
    """A client's part of the set.

    Attributes
    ----------
    model : PretrainedModel
        The model that generates it.
    first : int
        The row of its first image in the set.
    labels : Tensor or None
        int64, one per image.
    batches : list of SampleBatch
        All of the same shape.
    keys : list of str
        The batches' keys, which depend on their content.
    missing : list of int
        Indices of the batches that are not generated yet.
    """

    model: PretrainedModel
    first: int
    labels: Tensor | None
    batches: list[SampleBatch]
    keys: list[str]
    missing: list[int]


@dataclass(frozen=True, eq=False)
class Request:
    """Batches that a client was asked to generate."""

    share: ClientShare
    indices: list[int]
    packed: Packed


class Requests:
    """Chooses the next request: the clients take turns, with few messages at a time for each client.

    A client that hangs therefore does not block the others. A client that failed is not asked again.

    Parameters
    ----------
    shares : sequence of ClientShare
        The shares, with their missing batches.
    ask : callable
        Creates a request and its message.

    Attributes
    ----------
    under_way : list of Request
        Requests without a reply so far.
    refused : dict of int to str
        By partition, the reason why a client is not asked again.
    """

    def __init__(
        self, shares: Sequence[ClientShare], ask: Callable[[ClientShare, list[int]], tuple[Request, Message]]
    ) -> None:
        self._ask = ask
        self._waiting = deque((share, list(share.missing)) for share in shares if share.missing)
        self.under_way: list[Request] = []
        self.refused: dict[int, str] = {}

    def next(self) -> tuple[Request, Message] | None:
        """Return the next request; None while every client that has batches left is busy, or failed."""
        for _ in range(len(self._waiting)):
            share, left = self._waiting.popleft()
            if share.model.partition_id in self.refused:
                continue
            indices = left[:_BATCHES_PER_MESSAGE]
            busy = sum(request.share is share for request in self.under_way) >= _MESSAGES_PER_CLIENT
            if busy or left[len(indices) :]:
                self._waiting.append((share, left if busy else left[len(indices) :]))
            if not busy:
                request, message = self._ask(share, indices)
                self.under_way.append(request)
                return request, message
        return None

    def answered(self, request: Request) -> None:
        """Remove a request whose reply has arrived, accepted or not."""
        self.under_way.remove(request)
