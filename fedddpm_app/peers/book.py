"""The ledger of a run in its file, which a resumed run continues from where its checkpoint ends."""

from collections.abc import Mapping
from typing import Any

from fedddpm_app import weights as weights_module
from fedddpm_app.config import ConfigError
from fedddpm_app.config.pdfed import PDFedConfig
from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.peers.board import Submission
from fedddpm_app.peers.ledger import LEDGER, Ledger
from fedddpm_app.peers.rules import LedgerError
from fedddpm_app.peers.score import Score
from fedddpm_app.peers.trainings import Training


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

    def begin(self, weights: str, seed: int, settings: PDFedConfig) -> None:
        """Start the file with the genesis: the digest of the initial weights, the run's seed, and how peers choose."""
        self._recorder.keep_of(LEDGER, 0)
        self._ledger = Ledger()
        choosing = {"node": settings.node, "own_vote": settings.own_vote, "with_novelty": settings.novelty}
        self.add("genesis", weights=weights, seed=seed, **choosing)

    def add(self, kind: str, **facts: Any) -> None:
        """Append an entry; see ``rules`` for the facts."""
        self._recorder.append_to(LEDGER, self._ledger.entry(kind, facts))

    def submission(self, submission: Submission, training: Training, reply: Reply, time: float) -> None:
        """Append a submission: its training, its reply, and the time."""
        self.add(
            "submission",
            peer=submission.peer,
            number=submission.number,
            time=time,
            parents=[*training.parents],
            weights=submission.digest,
            samples=weights_module.digest(submission.samples),
            steps=int(reply.number("steps")),
            num_examples=reply.num_examples,
            loss=reply.number("loss"),
        )

    def vote(self, voter: int, submission: Submission, num_examples: int, score: Score, value: float) -> None:
        """Append a vote; ``value`` is what counts of the score in a choice."""
        self.add(
            "vote",
            peer=voter,
            submission=submission.digest,
            author=submission.peer,
            score=value,
            distance=score.distance,
            novelty=score.novelty,
            num_examples=num_examples,
            num_candidates=score.num_candidates,
            num_confirmed=score.num_confirmed,
        )

    def choice(self, peer: int, chosen: Submission, value: float) -> None:
        """Append a choice, and the value of the chosen submission."""
        self.add("choice", peer=peer, chosen=chosen.digest, author=chosen.peer, value=value)

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
        entries = self._recorder.keep_of(LEDGER, state["length"])
        try:
            self._ledger = Ledger(entries)
        except LedgerError as error:
            raise ConfigError(f"resume: {LEDGER}: {error}; {_FIX}") from error
        if self._ledger.head != state["head"]:
            raise ConfigError(f"resume: {LEDGER} is not the ledger that the checkpoint was made with; {_FIX}")


_FIX = "restore it from a backup, or start a new run."
