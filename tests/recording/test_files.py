"""A disk that fills up during a run, and the names of runs."""

import errno
import json
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from fedddpm_app.config import load_config
from fedddpm_app.recording.directory import run_directory
from fedddpm_app.recording.files import RecordingError, optional, write_json, writing
from fedddpm_app.recording.log import RunLog
from fedddpm_app.recording.recorder import RunRecorder

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error", [FULL, SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")]
)
def test_a_full_disk_is_one_sentence(error):
    says = r"^/x cannot be written \(No space left on device.*\): free some space"
    with pytest.raises(RecordingError, match=says), writing(Path("/x")):
        raise error
    if isinstance(error, OSError):
        with optional(Path("/x")):  # pictures do not end a run
            raise error


def test_a_summary_stays_complete_if_it_cannot_be_replaced(tmp_path, monkeypatch):
    write_json(tmp_path / "summary.json", {"status": "failed"})

    def full(*_, **__):
        raise FULL

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RecordingError, match=r"summary\.json cannot be written"):
        write_json(tmp_path / "summary.json", {"status": "completed"})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"status": "failed"}
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_the_summary_is_written_although_the_plots_cannot_be(tmp_path, monkeypatch):
    def full(*_):
        raise FULL

    monkeypatch.setattr("fedddpm_app.recording.pictures.plot_losses", full)
    recorder = RunRecorder(tmp_path / "run")
    recorder.append({"phase": "round", "round": 1})
    recorder.finish("completed", {})
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"


def test_a_log_on_a_full_disk_ends_and_the_run_goes_on(tmp_path):
    with Path("/dev/full").open("w") as full, RunLog(tmp_path) as log:
        log.write("one")
        os.dup2(full.fileno(), log._file.fileno())
        log.write("two")
        log.write("three")
    assert log.error == "No space left on device"
    assert log.path.read_text() == "one\n"


def test_a_log_ends_at_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("fedddpm_app.recording.log.LOG_CHARACTERS", 10)
    with RunLog(tmp_path) as log:
        for _ in range(9):
            log.write("four")
    assert log.path.read_text() == "four\nfour\n"
    assert log.error == "more than 10 characters"


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("path:/a/b/flowers", "flowers"),
        ("path:/a/b/flowers/", "flowers"),
        ("path:/a b/my flowers (2024).v1", "my-flowers-2024-v1"),
        ("path:/a/fleurs séchées", "fleurs-séchées"),
        ("path:/a/" + "n" * 300, "n" * 40),
        ("path:/", "data"),
        ("path:/a/***", "data"),
        ("uoft-cs/cifar10", "uoft-cs-cifar10"),
        ("digits", "digits"),
    ],
)
def test_a_run_is_named_after_the_last_name_of_its_data_folder(run_config, tmp_path, dataset, name):
    config = load_config(run_config | {"algorithm": "fedavg", "dataset": dataset, "run-name": ""})
    assert run_directory(config, tmp_path).name[:-16] == f"fedavg-{name}"
