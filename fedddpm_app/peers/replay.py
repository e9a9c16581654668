"""The choices of a ledger, made again from its votes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fedddpm_app.peers.board import Board
from fedddpm_app.peers.rules import LedgerError
from fedddpm_app.peers.score import Score

_TOLERANCE = 1e-9  # relative, of a value: another machine may round otherwise


def check_choices(entries: Sequence[Mapping[str, Any]]) -> None:
    """Check that each choice, its value, and the number of parents follow from the votes before it.

    Parameters
    ----------
    entries : sequence of dict
        Those of a ledger whose chain and rules hold.

    Raises
    ------
    LedgerError
        With the number of the first line that does not follow.
    """
    genesis, *rest = entries
    merges = genesis["node"] == "merge"
    board = Board(genesis["own_vote"], genesis["with_novelty"])
    parents: dict[int, int] = {}  # by peer, how many its next submission has
    for number, entry in enumerate(rest, start=2):
        kind, peer = entry["kind"], entry["peer"]
        if kind == "submission":
            if len(entry["parents"]) != parents.pop(peer, 1):
                raise LedgerError(number, f"has {len(entry['parents'])} parents with node = {genesis['node']!r}")
            board.enter(peer, entry["number"], entry["weights"], {})
        elif kind == "vote":
            score = Score(entry["distance"], entry["novelty"], entry["num_candidates"], entry["num_confirmed"], [])
            _check_score(number, entry["score"], board.value(score))
            board.vote(peer, board.candidates[entry["author"]], entry["num_examples"], score)
        elif kind == "choice":
            _check_choice(number, entry, board, merges)
            parents[peer] = 2 if merges and peer in board.candidates and entry["author"] != peer else 1
        elif kind == "left":
            parents.pop(peer, None)


def _check_score(number: int, found: float, right: float) -> None:
    if not math.isclose(found, right, rel_tol=_TOLERANCE):
        raise LedgerError(number, f"has the score {found}, but its terms give {right}")


def _check_choice(number: int, entry: Mapping[str, Any], board: Board, merges: bool) -> None:
    peer, author = entry["peer"], entry["author"]
    try:
        chosen, value = board.choose(peer, among_others=merges)
    except ValueError as error:
        raise LedgerError(number, f"is a choice that the votes before it do not allow: {error}") from error
    if (chosen.peer, chosen.digest) != (author, entry["chosen"]):
        raise LedgerError(
            number, f"chooses the submission of peer {author}, but by the votes before it is that of peer {chosen.peer}"
        )
    if not math.isclose(entry["value"], value, rel_tol=_TOLERANCE):
        raise LedgerError(number, f"has the value {entry['value']}, but the votes before it give {value}")
