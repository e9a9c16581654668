"""The ledger of a run in its file, which a resumed run continues from where its checkpoint ends."""

from collections.abc import Mapping
from typing import Any

from fedddpm_app.config import ConfigError
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.peers.ledger import NAME, Ledger
from fedddpm_app.peers.rules import LedgerError


class Book:
    """Writes each entry of a run's ledger as it is made.

    Parameters
    ----------
    recorder : Recorder
        Keeps the file.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._ledger = Ledger()

    def begin(self, weights: str, seed: int) -> None:
        """Start the file with the genesis: the digest of the initial weights, and the run's seed."""
        self._recorder.keep_of(NAME, 0)
        self._ledger = Ledger()
        self.add("genesis", weights=weights, seed=seed)

    def add(self, kind: str, **facts: Any) -> None:
        """Append an entry; see ``rules`` for the facts."""
        self._recorder.append_to(NAME, self._ledger.entry(kind, facts))

    def state_dict(self) -> dict[str, object]:
        """Return the length and the head of the ledger, for a checkpoint."""
        return {"length": self._ledger.length, "head": self._ledger.head}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Remove the entries after those of a checkpoint, and verify these.

        Raises
        ------
        ConfigError
            If the file was changed since.
        """
        entries = self._recorder.keep_of(NAME, state["length"])
        try:
            self._ledger = Ledger(entries)
        except LedgerError as error:
            raise ConfigError(f"resume: {NAME}: {error}; {_FIX}") from error
        if self._ledger.head != state["head"]:
            raise ConfigError(f"resume: {NAME} is not the ledger that the checkpoint was made with; {_FIX}")


_FIX = "restore it from a backup, or start a new run."
