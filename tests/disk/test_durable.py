"""Files that are complete or absent."""

import os
from pathlib import Path

import pytest

from fedddpm_app.disk.durable import digest_of, partial_of, publish, replacing


@pytest.fixture
def flushed(monkeypatch):
    """The files and folders that were flushed to the disk, in order."""
    paths = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: paths.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    return paths


def test_a_file_has_its_old_content_until_the_new_one_is_flushed(tmp_path, flushed):
    path = tmp_path / "a"
    path.write_text("old")
    with replacing(path) as work:
        work.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert flushed == [work, tmp_path]


def test_a_failed_write_leaves_the_old_content_and_no_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def fail():
        with replacing(path) as work:
            work.write_text("ne")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_a_folder_is_flushed_with_all_that_is_in_it(tmp_path, flushed):
    work = partial_of(tmp_path / "a")
    (work / "inner").mkdir(parents=True)
    (work / "inner" / "file").write_text("text")
    publish(work, tmp_path / "a")
    assert {*flushed} == {work, work / "inner", work / "inner" / "file", tmp_path}
    assert len(digest_of(tmp_path / "a" / "inner" / "file")) == 64
