"""The ledger's file: a resumed run goes on from the length that its checkpoint names, and a changed file is refused."""

import pytest

from fedddpm_app.config import ConfigError
from fedddpm_app.config.pdfed import PDFedConfig
from fedddpm_app.inprocess.recorder import MemoryRecorder
from fedddpm_app.peers.book import Book
from fedddpm_app.peers.ledger import LEDGER, read_ledger, verify
from fedddpm_app.recording.recorder import RunRecorder

SETTINGS = PDFedConfig(
    node="merge", own_vote=0.25, samples=2, validators=0, clock="virtual", speed_spread=1.0, embedder="pixels-pca",
    novelty=False, dedup=False,
)  # fmt: skip


def joined(book, *peers):
    for peer in peers:
        book.add("joined", peer=peer, time=0.0)


@pytest.fixture
def recorder(tmp_path):
    return RunRecorder(tmp_path / "run")


def test_lines_after_the_checkpoint_are_removed_and_the_chain_goes_on(recorder):
    book = Book(recorder)
    book.begin("start", 0, SETTINGS)
    joined(book, 0, 1)
    state = book.state_dict()
    joined(book, 2, 3)  # of a process that was then killed
    again = Book(recorder)
    again.load_state_dict(state)
    joined(again, 3)
    stored = read_ledger(recorder.directory / LEDGER)
    verify(stored.entries)
    assert [entry.get("peer") for entry in stored.entries] == [None, 0, 1, 3]
    assert stored.entries[0].items() >= {"node": "merge", "own_vote": 0.25, "with_novelty": False}.items()


@pytest.mark.parametrize("old", [b'"peer": 1', b'"seed": 0'])
def test_a_changed_line_is_refused(recorder, old):
    book = Book(recorder)
    book.begin("start", 0, SETTINGS)
    joined(book, 0, 1)
    path = recorder.directory / LEDGER
    path.write_bytes(path.read_bytes().replace(old, old[:-1] + b"7"))
    with pytest.raises(ConfigError, match=r"resume: ledger.jsonl: line \d was changed.*; restore it from a backup"):
        Book(recorder).load_state_dict(book.state_dict())


def test_another_ledger_of_the_same_length_is_refused(recorder):
    book, other = Book(recorder), Book(MemoryRecorder(recorder.directory))
    book.begin("start", 0, SETTINGS)
    joined(book, 0)
    other.begin("start", 0, SETTINGS)
    joined(other, 1)
    with pytest.raises(ConfigError, match="is not the ledger that the checkpoint was made with"):
        Book(recorder).load_state_dict(other.state_dict())


def test_a_run_that_starts_again_starts_the_ledger_again(recorder):
    book = Book(recorder)
    book.begin("start", 0, SETTINGS)
    joined(book, 0)
    book.begin("start", 0, SETTINGS)
    assert len(read_ledger(recorder.directory / LEDGER).entries) == 1
