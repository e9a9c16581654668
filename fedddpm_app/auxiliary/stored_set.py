"""The stored D_aux of a run, from which a resumed run continues."""

from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.phases import START, finished_phase, replay_phase
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.training.task import TrainingData


class StoredSet:
    """Reads the stored D_aux, and compares it with the set that the run uses and with that of a checkpoint.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its recorder stores the set.

    Attributes
    ----------
    clients : list of int
        The partition of the client whose model generated each image of the set that was read.
    """

    def __init__(self, strategy: FederatedStrategy) -> None:
        self._strategy = strategy
        self.clients: list[int] = []
        self._digest_of_checkpoint = ""

    @property
    def digest(self) -> str:
        """The SHA-256 of the stored set; empty if there is none."""
        return self._strategy.recorder.auxiliary_digest

    def load(self, start: str, training: str) -> TrainingData | None:
        """Return the set that an earlier process of this run has finished, with its phases; None if there is none.

        ``start`` is the digest of the weights that the clients' ``training`` starts from; with another start, the set
        is of an earlier phase. If it is empty, any set is returned.
        """
        strategy = self._strategy
        row = finished_phase(strategy.recorder, "auxiliary")
        if row is None or not row[START].startswith(start):
            return None
        stored = self._read()
        if stored is not None:
            with strategy.round_log.own_phase():
                for phase in (training, "auxiliary"):
                    replay_phase(strategy.recorder, strategy.accounting, phase)
        return stored

    def load_again(self, digest: str) -> TrainingData | None:
        """Return the set of a checkpoint, which had this ``digest``; None if it was not stored, or is damaged."""
        self._digest_of_checkpoint = digest
        stored = self._read() if digest else None
        self._check_digest()
        return stored

    def check(self, data: TrainingData) -> None:
        """Discard the stored set if it is not ``data``: a subclass may change the set that it inherits.

        Raises
        ------
        RoundFailedError
            When the stored set is not that of the checkpoint of a resumed run.
        """
        if self.digest and not (isinstance(data, ImageTensors) and data.digest() == self.digest):
            self._strategy.recorder.discard_auxiliary()
        self._check_digest()

    def _read(self) -> TrainingData | None:
        stored = self._strategy.recorder.load_auxiliary()
        if stored is None:
            return None
        images, self.clients = stored
        return images.to(self._strategy.trainer.device)

    def _check_digest(self) -> None:
        if self._digest_of_checkpoint and self.digest and self.digest != self._digest_of_checkpoint:
            raise RoundFailedError(
                "the auxiliary set differs from the one that the checkpoint was made with: restore the folder "
                "auxiliary of the run from a backup, or start a new run."
            )
