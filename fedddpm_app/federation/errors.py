"""Errors that end a run."""

from fedddpm_app import weights as weights_module
from fedddpm_app.weights import Weights


class RoundFailedError(RuntimeError):
    """No client returned a usable reply, so the run cannot continue."""


def check_finite(weights: Weights, subject: str, fix: str) -> None:
    """Raise ``RoundFailedError`` if weights are NaN or infinite, before they are sent to the clients."""
    if not weights_module.is_finite(weights):
        raise RoundFailedError(f"{subject} are not finite: {fix}.")
