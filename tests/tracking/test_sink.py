"""The rules between a run and its trackers, with trackers that only note what they get."""

import threading
from pathlib import Path

import pytest
from PIL import Image

from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.recording.directory import check_has_no_links
from fedddpm_app.tracking import choice, chosen_trackers, start_tracking

ROUND = {"phase": "round", "round": 1, "train/loss": 0.5}
DONE = {"status": "completed", "train/loss": 0.5}


class Notes(list):
    """A tracker that notes what it gets; ``fails`` names the method that raises."""

    def __init__(self, fails=""):
        self.fails = fails

    def log(self, server_round, values):
        self.note("log", server_round, values)

    def picture(self, server_round, name, path):
        assert Path(path).is_file()
        self.note("picture", server_round, name)

    def finish(self, status):
        self.note("finish", status)

    def note(self, method, *what):
        if method == self.fails:
            raise RuntimeError("no room\nand a second line")
        self.append((method, *what))


@pytest.fixture
def trackers(monkeypatch):
    """What every started tracker got, by the key's word for it."""
    made = {}

    def opened(name, run):
        made.setdefault(name, []).append(Notes("log" if name == "mlflow" else ""))
        return made[name][-1]

    monkeypatch.setattr(choice, "_is_installed", lambda name: True)
    monkeypatch.setattr(choice, "_open", opened)
    return made


@pytest.fixture
def start(tmp_path, run_config):
    def start(tracker, kept=(), **settings):
        config = run_config | {"tracker": tracker} | settings
        return start_tracking(load_config(config), config, tmp_path, kept)

    return start


@pytest.fixture
def sheet(tmp_path):
    path = tmp_path / "samples" / "round-0001.png"
    path.parent.mkdir()
    Image.new("L", (2, 2)).save(path)
    return path


def test_lines_pictures_and_the_end_arrive_in_order(trackers, start, sheet):
    sink = start("tensorboard, wandb")
    sink.picture(sheet, "samples/model", server_round=1)
    sink.line(ROUND)
    sink.picture(sheet, "samples/late")
    sink.end(DONE, 9)
    sink.end({"status": "failed"}, 9)
    of_round, summary = {"train/loss": 0.5}, {"summary/train/loss": 0.5}
    wanted = [("picture", 1, "samples/model"), ("log", 1, of_round), ("picture", 1, "samples/late")]
    wanted += [("log", 1, summary), ("finish", "completed")]
    assert trackers == {"tensorboard": [wanted], "wandb": [wanted]}


def test_a_tracker_that_fails_gives_one_warning_and_the_others_go_on(trackers, start, caplog):
    sink = start("mlflow,wandb")
    for _ in range(3):
        sink.line(ROUND)
    sink.end(DONE, 9)
    assert trackers["mlflow"] == [[]]
    assert len(trackers["wandb"][0]) == 5
    assert [record.message for record in caplog.records] == [
        'tracker = "mlflow" fails, and gets nothing more; the run goes on: no room'
    ]


def test_a_tracker_that_hangs_costs_only_the_wait_at_the_end(trackers, start, caplog):
    sink, goes_on = start("wandb"), threading.Event()
    sink._jobs.put(lambda tracker: goes_on.wait(9))
    for _ in range(1000):
        sink.line(ROUND)
    sink.end(DONE, 0.01)
    goes_on.set()
    assert "tracker: not finished after 0 s" in caplog.text


def test_a_resumed_run_gives_again_what_it_keeps(trackers, start, sheet):
    sink = start("wandb")
    sink.picture(sheet, "samples/model", server_round=1)
    sink.line(ROUND)
    sink.picture(sheet, "samples/model", server_round=2)
    sink.line(ROUND | {"round": 2})
    sink.end({"status": "failed"}, 9)
    start("wandb", [ROUND]).end(DONE, 9)
    assert trackers["wandb"][1][:3] == [
        ("picture", 1, "samples/model"),
        ("log", 1, {"train/loss": 0.5}),
        ("log", 1, {"summary/train/loss": 0.5}),
    ]


@pytest.mark.parametrize("entry", ["{", "[]", '{"path": "../a.png"}', '{"path": "/etc/passwd"}', "[" * 99999])
def test_a_list_of_pictures_that_is_none_gives_none(trackers, start, sheet, tmp_path, entry):
    (tmp_path / "tracking").mkdir()
    (tmp_path / "tracking" / "pictures.jsonl").write_text(entry + "\n")
    start("wandb", [ROUND, ROUND]).end(DONE, 9)
    assert [what[0] for what in trackers["wandb"][0]] == ["log", "log", "log", "finish"]


def test_the_trackers_folder_that_cannot_be_made_costs_the_trackers_alone(trackers, start, tmp_path, caplog):
    (tmp_path / "tracking").write_text("a file")
    assert start("wandb") is None
    assert "cannot be written" in caplog.text


def test_paths_of_the_config_do_not_reach_a_tracker(monkeypatch, trackers, start):
    found = []
    monkeypatch.setattr(choice, "_open", lambda name, run: found.append(run) or Notes())
    start("wandb", dataset="path:/home/me/images").end(DONE, 9)
    (run,) = found
    assert run.config["dataset"] == run.config["output-dir"] == "<path>"
    assert run.config["learning-rate"] == 0.003


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow", "trackio"])
def test_a_library_that_is_not_installed_is_refused_with_the_command(run_config, monkeypatch, name):
    monkeypatch.setattr(choice, "find_spec", lambda name: None)
    fix = rf'tracker = "none, {name}|tracker = "{name}".*pip install "fedddpm-app\[{name}\]"'
    with pytest.raises(ConfigError, match=fix):
        chosen_trackers(load_config(run_config | {"tracker": name}))
    assert chosen_trackers(load_config(run_config | {"tracker": "auto"})) == ()


def test_a_folder_with_the_name_of_a_library_is_not_the_library(tmp_path, monkeypatch):
    (tmp_path / "some_tracker").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not choice._is_installed("some_tracker")


@pytest.mark.parametrize("value", ["tensorbord", "none,wandb", "auto,wandb", "wandb,", ""])
def test_an_unknown_tracker_is_refused(run_config, value):
    with pytest.raises(ConfigError, match=r"tracker = '.*' cannot be used: it should be auto, none, tensorboard"):
        load_config(run_config | {"tracker": value})


def test_a_link_that_a_library_made_does_not_keep_a_run_from_being_resumed(tmp_path):
    (tmp_path / "tracking" / "wandb").mkdir(parents=True)
    (tmp_path / "tracking" / "wandb" / "core.log").symlink_to("/nowhere")
    check_has_no_links(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tracking").symlink_to(tmp_path / "tracking")
    with pytest.raises(ConfigError, match="tracking is a link"):
        check_has_no_links(tmp_path / "run")


AUXILIARY = {"auxiliary/client-0000", "auxiliary/client-0001", "auxiliary/closest-pairs"}
OF_CLIENTS = {
    "fedddpm": AUXILIARY | {"samples/closest-pairs"},
    "local-only": {"samples/clients", "samples/client-0000", "samples/client-0001"},
    "mixture": {"samples/model", "samples/closest-pairs"},
}


@pytest.mark.parametrize(
    ("algorithm", "asked"),
    [
        ("fedddpm", False),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [("local-only", False), ("mixture", False)]),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in OF_CLIENTS),
    ],
)
def test_nothing_of_clients_images_reaches_a_tracker_unless_asked(run_app, trackers, algorithm, asked):
    settings = {"algorithm": algorithm, "tracker": "wandb", "track-client-images": asked, "num-rounds": 1}
    settings |= {"eval-final-images": 20, "eval-extractor": "pixels-pca", "num-clients": 2}
    run = run_app(**settings)
    ((*got, end),) = trackers["wandb"]
    pictures = {what[2] for what in got if what[0] == "picture"}
    allowed = {"samples/model"} if algorithm == "fedddpm" else set()
    assert {path.name for path in run.path.rglob("closest-pairs*.png")}  # which were there to be held back
    assert OF_CLIENTS[algorithm] | allowed <= pictures if asked else pictures == allowed
    names = {name for what in got if what[0] == "log" for name in what[2]}
    assert not [name for name in names if name.endswith("client_loss") or "label_counts" in name]
    assert end == ("finish", run.summary["status"]) == ("finish", "completed")
