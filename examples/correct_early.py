"""A correction rule of one's own: correct in the first half of a run only, while the clients still drift most."""

from fedddpm_app import FedDDPM, Weights


class CorrectEarly(FedDDPM):
    """FedDDPM that leaves the second half of the rounds to the clients."""

    def should_correct(self, server_round: int, weights: Weights) -> bool:
        """Return whether this round is in the first half."""
        return server_round <= self.config.run.num_rounds // 2
