"""What ends a run."""

from fedddpm_app import weights as weights_module
from fedddpm_app.weights import Weights


class RoundFailedError(RuntimeError):
    """No client gave a usable reply, so there is nothing to go on with."""


def check_finite(weights: Weights, what: str, fix: str) -> None:
    """Raise ``RoundFailedError`` where weights are NaN or infinite, before they reach every client."""
    if not weights_module.is_finite(weights):
        raise RoundFailedError(f"{what} are not finite: {fix}.")
