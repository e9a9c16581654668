"""A custom correction rule: correct only in the first half of a run, in which the clients drift most."""

from fedddpm_app import FedDDPM, Weights


class CorrectEarly(FedDDPM):
    """FedDDPM without corrections in the second half of the rounds."""

    def should_correct(self, server_round: int, weights: Weights) -> bool:
        """Return whether this round is in the first half."""
        return server_round <= self.config.run.num_rounds // 2
