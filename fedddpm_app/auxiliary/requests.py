"""Which client is asked for which images of the auxiliary set: shares, requests, and whose turn it is."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import Message
from torch import Tensor

from fedddpm_app.auxiliary.pretraining import PretrainedModel
from fedddpm_app.diffusion.sampling import SampleBatch
from fedddpm_app.transport import Packed

# The model travels with every message: several batches share one. Few, so that a client's batches spread over idle
# actors, a stop loses little, and the images in memory stay few.
_BATCHES_PER_MESSAGE = 4
_MESSAGES_PER_CLIENT = 2


@dataclass
class ClientShare:
    """A client's part of the set.

    Attributes
    ----------
    model : PretrainedModel
        What generates it.
    first : int
        The row in the set of its first image.
    labels : Tensor or None
        int64, one per image.
    batches : list of SampleBatch
        All of one shape.
    keys : list of str
        Of the batches, by content.
    missing : list of int
        Batches that are not generated yet.
    """

    model: PretrainedModel
    first: int
    labels: Tensor | None
    batches: list[SampleBatch]
    keys: list[str]
    missing: list[int]


@dataclass(frozen=True, eq=False)
class Request:
    """Batches that a client was asked for."""

    share: ClientShare
    indices: list[int]
    packed: Packed


class Requests:
    """Chooses the next request: the clients in turn, and of each few messages at a time.

    So one that hangs does not take the places of all others; one that failed is not asked again.

    Parameters
    ----------
    shares : sequence of ClientShare
        With their missing batches.
    ask : callable
        Makes a request and its message.

    Attributes
    ----------
    under_way : list of Request
        Without an answer so far.
    refused : dict of int to str
        Why a client is not asked again.
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
        """Take note that an answer came, good or bad."""
        self.under_way.remove(request)
