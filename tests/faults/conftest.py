"""What the tests of ends share: folders in place of the machine's, and what dead processes leave."""

import json

import pytest

from fedddpm_app.transport import shared


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A folder in place of memory-backed storage."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(shared, "ROOT", folder)
    for module in ("homes", "leftovers"):
        monkeypatch.setattr(f"fedddpm_app.launch.{module}.SHARED_MEMORY", folder)
    return folder


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder in place of /tmp."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def lines_of(directory):
    """The lines of stats.jsonl, all complete."""
    text = (directory / "stats.jsonl").read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def abandon(folder):
    """Leave a folder as a killed process does: its lock is free."""
    folder._lock.release()
    return folder.path
