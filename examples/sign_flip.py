"""A malicious client, to see what each aggregation rule makes of it: it flips the sign of its update.

    Client 0   sends w - scale (w_0 - w) instead of w_0
    Server     as FedDDPM; correction-steps = 0 makes it FedAvg

Every number of such an update is as plausible as that of an honest one, so the checks of replies accept it. In a mean
of m clients with equal n_i, scale = m - 1 cancels all others. Run it with
--run-config 'algorithm="examples.sign_flip:SignFlip" algorithm-options="scale=1" aggregator="fedmedian"'
"""

from collections.abc import Callable

from fedddpm_app import FedDDPM, TrainingHook, Weights
from fedddpm_app.training.hooks import TrainResult


class SignFlipHook(TrainingHook):
    """The client half: honest except on client 0."""

    def on_end(self, result: TrainResult, full_gradient: Callable[[Weights], Weights]) -> None:
        """Replace w_0 by its mirror image at w."""
        if self.round.partition_id == 0:
            scale = float(self.config.run.options.get("scale", 1.0))
            for name, w in self.round.global_weights.items():
                result.weights[name] = w - scale * (result.weights[name] - w)


class SignFlip(FedDDPM):
    """The server half, which is the same as in FedDDPM."""

    hook = SignFlipHook
