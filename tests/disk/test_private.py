"""Folders that only their user can enter, whatever the umask, and folders of others, which are refused."""

import os

import pytest
import torch
from flwr.app import Context, RecordDict

from fedddpm_app.client.state import ClientState
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.data.store import load_stored
from fedddpm_app.recording.log import RunLog
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.training.privacy import Budget, Spent
from fedddpm_app.training.privacy_ledger import PrivacyLedger
from fedddpm_app.transport import shared
from fedddpm_app.transport.shared import SharedDirectory


@pytest.fixture
def open_umask():
    """A user whose new files anybody may write."""
    before = os.umask(0)
    yield
    os.umask(before)


def give_away(folder, monkeypatch, parent_mode=0o1777):
    """Make another user the owner of a folder, or this process another user, where everybody can make folders."""
    folder.parent.chmod(parent_mode)
    if os.getuid() == 0:
        os.chown(folder, 12345, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)


def open_to_others(folder):
    """The files and folders that others can use."""
    return [str(path) for path in (folder, *folder.rglob("*")) if path.lstat().st_mode & 0o077]


def a_state(config):
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    return ClientState(config, context, "1", 0)


def write_state(config):
    a_state(config).save(1, {"record": {"weight": torch.ones(2)}})


def decode(config):
    load_stored.cache_clear()
    return load_stored(config.data)


@pytest.fixture
def here(run_config, tmp_path):
    """The app's config with all places below a new folder, which also is returned."""
    places = {"state-dir": str(tmp_path / "new" / "state"), "cache-dir": str(tmp_path / "new" / "cache")}
    yield load_config(run_config | places), tmp_path / "new"
    load_stored.cache_clear()


def test_folders_of_a_run_are_private_from_the_start(here, open_umask, monkeypatch):
    config, new = here
    decode(config)
    write_state(config)
    monkeypatch.setattr("fedddpm_app.training.privacy_ledger.epsilon_of", lambda *_: 0.0)
    PrivacyLedger(new / "privacy" / "client.json").spend(Spent("train", 0.1, 2.0, 1), Budget(8.0, 1e-5))
    with RunLog(new / "runs" / "run"):
        assert RunRecorder(new / "runs" / "run").scratch.is_dir()
    monkeypatch.setattr(shared, "ROOT", new)
    directory = SharedDirectory.create()
    directory.write([b"weights"])
    private = [new, new / "state", new / "state" / "run-1", new / "privacy", new / "runs" / "run", directory.path]
    private += [
        new / "cache",
        new / "cache" / "images",
        *(p for p in (new / "cache" / "images").iterdir() if p.is_dir()),
    ]
    assert not [str(folder) for folder in private if folder.stat().st_mode & 0o077]
    assert not open_to_others(new / "state") + open_to_others(directory.path)
    directory.close()


@pytest.mark.parametrize("name", ["cache", "cache/images"])
def test_a_cache_that_another_user_made_is_refused(here, monkeypatch, name):
    """It may be poisoned, and its owner could read the decoded images: in /tmp anybody can make it first."""
    config, new = here
    decode(config)
    give_away(new / name, monkeypatch)
    with pytest.raises(ConfigError, match="belongs to another user"):
        decode(config)


@pytest.mark.parametrize("name", ["state", "state/run-1"])
def test_states_in_a_folder_that_another_user_made_are_neither_written_nor_read(here, monkeypatch, name):
    config, new = here
    write_state(config)
    give_away(new / name, monkeypatch)
    with pytest.raises(OSError, match="belongs to another user"):
        write_state(config)
    with pytest.raises(OSError, match="belongs to another user"):
        ClientState(config, a_state(config)._context, "1", 0, 1).load()


def test_a_run_directory_or_a_link_that_another_user_made_is_refused(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    tmp_path.chmod(0o1777)
    if os.getuid() == 0:
        os.lchown(tmp_path / "link", 12345, -1)
        with pytest.raises(ConfigError, match="belongs to another user"):
            RunRecorder(tmp_path / "link")
    give_away(tmp_path / "run", monkeypatch)
    with pytest.raises(ConfigError, match="belongs to another user"):
        RunRecorder(tmp_path / "run")
    with pytest.raises(ConfigError, match="belongs to another user"):
        RunRecorder.resume(tmp_path / "run", None)


def test_a_folder_of_another_user_where_only_its_user_can_have_put_it_is_named(tmp_path, monkeypatch, caplog):
    """Such as the folder of a host in a container."""
    (tmp_path / "run").mkdir(mode=0o700)
    give_away(tmp_path / "run", monkeypatch, parent_mode=0o755)
    RunRecorder(tmp_path / "run")
    assert f"{tmp_path / 'run'} belongs to another user" in caplog.text


def test_a_folder_of_an_earlier_version_gives_a_sentence(tmp_path, caplog):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o755)
    for _ in range(2):
        RunRecorder(tmp_path / "run")
    sentences = [record.message for record in caplog.records if "chmod -R go-rwx" in record.message]
    assert len(sentences) == 1
    assert f"{tmp_path / 'run'} (mode 0755)" in sentences[0]


@pytest.mark.parametrize("place", ["run", "deep/run", "state", "cache"])
def test_nothing_is_made_below_a_folder_that_another_user_made_where_everybody_can(
    run_config, tmp_path, monkeypatch, place
):
    """Its owner could exchange what is in it: whoever starts a run in /tmp writes to /tmp/runs."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    give_away(theirs, monkeypatch)
    config = load_config(
        run_config | {"state-dir": str(theirs / "a" / "state"), "cache-dir": str(theirs / "a" / "cache")}
    )
    work = {"state": lambda: write_state(config), "cache": lambda: decode(config)}
    with pytest.raises(OSError if place == "state" else ConfigError, match="belongs to another user"):
        work.get(place, lambda: RunRecorder(theirs / place))()
    load_stored.cache_clear()
