"""Errors that end a run."""

from collections.abc import Mapping

from fedddpm_app import weights as weights_module
from fedddpm_app.weights import Weights


class RoundFailedError(RuntimeError):
    """The run cannot continue; the message gives the reason."""


class TooFewRepliesError(RoundFailedError):
    """Fewer clients than ``min-replies`` returned a usable reply; the round can be repeated.

    Attributes
    ----------
    has_excluded : bool
        Whether clients were excluded, so that the next attempt is without them: it does not count as a retry, if there
        are retries at all. Else several clients, each found out in an attempt of its own, could end the run.
    """

    def __init__(self, message: str, *, has_excluded: bool = False) -> None:
        super().__init__(message)
        self.has_excluded = has_excluded


class ActorLostError(RoundFailedError):
    """A process that Ray keeps for clients died: the run would lose clients in every later round."""


def check_weights(weights: object, method: str) -> None:
    """Raise ``TypeError`` if a method of an algorithm returned something else than weights."""
    if not isinstance(weights, Mapping):
        raise TypeError(f"{method} returned {type(weights).__name__}: return weights, a dict of tensors by name.")


def check_finite(weights: Weights, subject: str, fix: str) -> None:
    """Raise ``RoundFailedError`` if weights are NaN or infinite, before they are sent to the clients."""
    if not weights_module.is_finite(weights):
        raise RoundFailedError(f"{subject} are not finite: {fix}.")
