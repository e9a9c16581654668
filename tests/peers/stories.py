"""Ledgers made by hand: peers merge, and choose by their own votes alone."""

from fedddpm_app.peers.ledger import Ledger
from fedddpm_app.recording.files import append_line

CHOOSING = {"node": "merge", "own_vote": 1.0, "with_novelty": True}
GENESIS = ("genesis", {"weights": "start", "seed": 3, "names": ["fedddpm", "Zürich"], **CHOOSING})


def joined(peer):
    return "joined", {"peer": peer, "time": 2.5}


def submission(peer, number, parents, weights, **changes):
    facts = {"time": 2.5, "samples": f"of {weights}", "steps": 5, "num_examples": 10, "loss": None}
    return "submission", facts | {"peer": peer, "number": number, "parents": parents, "weights": weights} | changes


def vote(peer, digest, distance=3.0, novelty=1.0, num_examples=10, author=None):
    facts = {"distance": distance, "novelty": novelty, "num_examples": num_examples, "score": (distance + novelty) / 2}
    target = {"submission": digest, "author": author_of(digest) if author is None else author}
    return "vote", facts | target | {"peer": peer, "num_candidates": 2, "num_confirmed": 1}


def choice(peer, digest, value=1.0, author=None):
    author = author_of(digest) if author is None else author
    return "choice", {"peer": peer, "chosen": digest, "author": author, "value": value}


def author_of(digest):
    """Peer 0 submits a1, a2, ..., and peer 1 submits b1, b2, ..."""
    return int(digest.startswith("b"))


STORY = (
    GENESIS,
    ("joined", {"peer": 0, "time": 0.0}),
    ("joined", {"peer": 1, "time": 0.0}),
    submission(0, 1, ["start"], "a1"),
    vote(0, "a1"),
    choice(0, "a1"),
    submission(1, 1, ["start"], "b1"),
    vote(1, "a1", 2.0, 0.0),
    vote(1, "b1"),
    choice(1, "a1", 2 / 3),
    submission(0, 2, ["a1"], "a2", loss=0.25),
    ("left", {"peer": 0, "time": 2.5, "reason": "no answer in 3,600 s"}),
    submission(1, 2, ["a1", "b1"], "b2"),
    joined(0),
    vote(0, "a2"),
    vote(0, "b2", 1.0, 50.0),
    choice(0, "b2", 51 / 27.5),
    submission(0, 3, ["b2", "a2"], "a3"),
)


def build(story=STORY):
    ledger = Ledger()
    return ledger, [ledger.entry(kind, facts) for kind, facts in story]


def write(path, entries):
    for entry in entries:
        append_line(path, entry)
    return path
