import hashlib
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from fedddpm_app.disk import owned
from fedddpm_app.transport import shared
from fedddpm_app.transport.layout import PayloadError
from fedddpm_app.transport.reference import FileReference
from fedddpm_app.transport.shared import SharedDirectory, map_file, write_file


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "ROOT", tmp_path)
    found = SharedDirectory.create()
    yield found
    found.close()


def names(directory, kind):
    return sorted(path.name for path in directory.path.glob(f"{kind}*"))


def test_what_is_written_is_read(directory):
    reference = directory.write([b"weights", b" and more"])
    assert bytes(map_file(reference)) == b"weights and more"
    assert reference.sha256 == hashlib.sha256(b"weights and more").hexdigest()
    assert FileReference.from_json(reference.to_json()) == reference
    assert directory.path.stat().st_mode & 0o077 == 0


def test_a_reply_is_gone_when_it_is_taken_and_its_storage_serves_the_next(directory):
    first = write_file(directory.path.name, "up-3", [b"a" * 100])
    content = directory.take(first, 3)
    assert bytes(content) == b"a" * 100
    assert not names(directory, "up-")
    second = write_file(directory.path.name, "up-3", [b"b" * 100])
    assert bytes(content) == b"a" * 100  # still held, so not written over
    directory.take(second, 3)
    del content
    assert len(names(directory, "free-")) == 2
    third = write_file(directory.path.name, "up-4", [b"c" * 10])
    assert len(names(directory, "free-")) == 1
    assert bytes(directory.take(third, 4)) == b"c" * 10


def test_storage_does_not_pile_up(directory):
    held = [directory.take(write_file(directory.path.name, "up-1", [b"x"]), 1) for _ in range(9)]
    assert len(names(directory, "held-")) == 9
    held.clear()
    assert len(names(directory, "free-")) == 4
    assert not names(directory, "held-")


def test_a_client_takes_only_its_own_files(directory):
    own, broadcast = write_file(directory.path.name, "up-1", [b"x"]), directory.write([b"y"])
    for reference in (own, broadcast):
        with pytest.raises(PayloadError, match="another client's file"):
            directory.take(reference, 11)
    with pytest.raises(PayloadError, match="another client's file"):
        directory.take(replace(own, directory="fedddpm-elsewher"), 1)
    assert bytes(map_file(broadcast)) == b"y"


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/passwd", "up-1-../../secret", "owner.lock", "up-1-" + "0" * 31, "up-1-" + "0" * 32 + "/x", ""],
)
def test_no_path_is_opened(directory, name):
    (directory.path.parent / "secret").write_text("s")
    with pytest.raises(PayloadError):
        map_file(FileReference(directory.path.name, name, 1, hashlib.sha256(b"s").hexdigest()))
    with pytest.raises(PayloadError):
        directory.take(FileReference(directory.path.name, name, 1, hashlib.sha256(b"s").hexdigest()), 1)


def test_a_reply_that_is_refused_or_not_there_leaves_nothing(directory):
    reference = write_file(directory.path.name, "up-1", [b"x"])
    with pytest.raises(PayloadError, match="SHA-256"):
        directory.take(replace(reference, sha256="0" * 64), 1)
    with pytest.raises(PayloadError):
        directory.take(reference, 1)
    assert names(directory, "") == ["owner.lock"]


@pytest.mark.parametrize("folder", ["..", ".", "fedddpm-../../etc", "fedddpm-0123456", "/etc"])
def test_no_other_directory_is_opened(directory, folder):
    with pytest.raises(PayloadError, match="not a name of a server's directory"):
        map_file(FileReference(folder, "up-1-" + "0" * 32, 1, ""))


def test_a_link_is_not_followed(directory, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s")
    name = "up-1-" + "0" * 32
    (directory.path / name).symlink_to(secret)
    with pytest.raises(PayloadError, match="cannot be read"):
        map_file(FileReference(directory.path.name, name, 1, hashlib.sha256(b"s").hexdigest()))


def test_a_directory_that_others_can_enter_is_refused(directory):
    reference = directory.write([b"x"])
    directory.path.chmod(0o755)
    with pytest.raises(PayloadError, match="alone"):
        map_file(reference)


def test_a_pipe_does_not_hang_the_server(directory):
    name = "up-1-" + "0" * 32
    os.mkfifo(directory.path / name)
    with pytest.raises(PayloadError, match="bytes instead of"):
        map_file(FileReference(directory.path.name, name, 1, ""))


def test_a_changed_file_is_refused(directory):
    reference = directory.write([b"weights"])
    with pytest.raises(PayloadError, match="7 bytes instead of 6"):
        map_file(replace(reference, size=6))
    with pytest.raises(PayloadError, match="SHA-256"):
        map_file(replace(reference, sha256="0" * 64))
    map_file(reference)
    (directory.path / reference.name).write_bytes(b"weighty")
    with pytest.raises(PayloadError, match="SHA-256"):
        map_file(reference)


def test_a_file_that_many_clients_read_is_hashed_once(directory, monkeypatch):
    reference = directory.write([b"weights"])
    map_file(reference)
    monkeypatch.setattr(hashlib, "sha256", None)
    first, second = map_file(reference), map_file(reference)
    first[0:1] = b"W"  # a client that changes its weights by mistake changes nobody else's
    assert bytes(second) == b"weights"


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"name": "x"}', b'{"directory":1,"name":2,"size":3,"sha256":4}', b"\xff", b"[" * 999]
)
def test_what_is_no_reference_is_refused(data):
    with pytest.raises(PayloadError, match="not a reference"):
        FileReference.from_json(data)


def test_a_full_disk_leaves_no_part_of_a_file(directory, monkeypatch):
    def full(file, chunk):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        write_file(directory.path.name, "up-1", [b"x"])
    assert not names(directory, "up-")


def test_unread_replies_and_the_directory_are_removed(directory):
    written = [write_file(directory.path.name, kind, [b"x"]).name for kind in ("up-1", "up-1", "up-11", "up-2")]
    kept = directory.write([b"y"])
    directory.remove_unread(1)
    assert names(directory, "up-") == sorted(written[2:])
    directory.remove_unread()
    assert names(directory, "") == sorted(["owner.lock", kept.name])
    directory.remove(kept)
    directory.close()
    assert not directory.path.exists()


CRASHES = """
import os, sys
from pathlib import Path
from fedddpm_app.transport import shared
shared.ROOT = Path(sys.argv[1])
made = shared.SharedDirectory.create()
made.write([b"x"])
print(made.path, flush=True)
sys.stdin.read()
os._exit(1)
"""


def test_what_a_killed_run_left_is_removed_by_the_next_and_a_living_one_is_not(directory, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", CRASHES, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    left = tmp_path / os.path.basename(process.stdout.readline().strip())  # noqa: PTH119
    owned.remove_abandoned(shared.PREFIX, tmp_path)
    assert left.exists()
    process.kill()
    process.communicate()
    owned.remove_abandoned(shared.PREFIX, tmp_path)
    assert not left.exists()
    assert directory.path.exists()
