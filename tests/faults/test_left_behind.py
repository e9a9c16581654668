"""The table of docs/left-behind.md against what a run really leaves, when it completes and when it is killed."""

import itertools
import json
import os
import re
import signal
import tempfile

import pytest
from typer.testing import CliRunner

from fedddpm_app.auxiliary.batch_files import BatchFiles
from fedddpm_app.cli import app
from fedddpm_app.launch.delivery import lines_of
from fedddpm_app.launch.flower_run import COMPLETED, FlowerRun
from fedddpm_app.launch.leftovers import find_left_overs
from fedddpm_app.recording.recorder import RunRecorder
from tests.conftest import ROOT
from tests.faults.killing import run_in_child

SERVER_AND_SITE, LAPTOP = {"server", "site", "server and site"}, {"laptop"}
YES, OPTIONAL, NO = "yes", "may be", "no"


def rows():
    """The rows of the table, as dicts by the names of its columns."""
    _, _, text = (ROOT / "docs" / "left-behind.md").read_text(encoding="utf-8").partition("<!-- the table of files -->")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    names, _, *found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(names, cells, strict=True)) for cells in found]


def pattern_of(row):
    """``*`` is a part of a name, ``**`` any path."""
    parts = re.split(r"(\*+)", row["file"].strip("`"))
    return re.compile("".join({"*": "[^/]*", "**": ".*"}.get(part, re.escape(part)) for part in parts))


def compare(column, hosts, places):
    """Compare the files below some places with the rows of some hosts."""
    chosen = [row for row in rows() if row["where"] in hosts]
    patterns = [(pattern_of(row), row) for row in chosen]
    unmatched, seen, wrong = [], set(), []
    for name, folder in places.items():
        for path in folder.rglob("*"):
            mode = path.lstat().st_mode & 0o777
            shown = f"{name}/{path.relative_to(folder)}"
            if path.is_dir():
                wrong += [f"{shown} {mode:o}"] if mode != 0o700 else []
                continue
            row = next((row for pattern, row in patterns if pattern.fullmatch(shown)), None)
            if row is None or row[column] == NO:
                unmatched.append(shown)
            else:
                seen.add(row["file"])
                wrong += [f"{shown} {mode:o}"] if f"{mode:04o}" != row["mode"] else []
    assert not unmatched, f"files that no row of the table has in {column}: {sorted(unmatched)}"
    assert not wrong, f"other modes than in the table: {sorted(wrong)}"
    missing = [row["file"] for row in chosen if row[column] == YES and row["file"] not in seen]
    assert not missing, f"rows without a file in {column}: {missing}"
    assert all(row[key] in (YES, OPTIONAL, NO) for row in chosen for key in ("completed", "died"))


def test_a_file_without_a_row_and_a_row_without_a_file_are_noticed(tmp_path):
    tmp_path.chmod(0o700)
    with pytest.raises(AssertionError, match=r"rows without a file in completed: .*RUN/config\.json"):
        compare("completed", SERVER_AND_SITE, {"RUN": tmp_path})
    (tmp_path / "strange.pt").touch(0o600)
    (tmp_path / "owner.lock").touch(0o600)
    with pytest.raises(AssertionError, match=r"no row of the table .*RUN/owner\.lock.*RUN/strange\.pt"):
        compare("completed", SERVER_AND_SITE, {"RUN": tmp_path})
    (tmp_path / "strange.pt").rename(tmp_path / "stats.jsonl").chmod(0o644)
    with pytest.raises(AssertionError, match=r"other modes than in the table: .*RUN/stats\.jsonl 644"):
        compare("died", SERVER_AND_SITE, {"RUN": tmp_path})


@pytest.fixture
def places(tmp_path, memory, monkeypatch):
    """A machine whose folders for all purposes are empty and below one, and a user whose files anybody may write."""
    found = {name: tmp_path / name.lower() for name in ("RUN", "STATE", "CACHE", "TMP", "HOME")} | {"SHM": memory}
    for name in ("TMP", "HOME"):
        found[name].mkdir()
    monkeypatch.setenv("HOME", str(found["HOME"]))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    monkeypatch.setenv("FLWR_HOME", str(found["HOME"] / "flwr"))
    monkeypatch.setattr(tempfile, "tempdir", str(found["TMP"]))
    before = os.umask(0)
    yield found
    os.umask(before)


@pytest.fixture
def settings(run_config, places):
    """A run whose clients keep states, and that generates D_aux from their own models."""
    folders = {"output-dir": str(places["RUN"].parent), "run-name": "run", "state-dir": str(places["STATE"])}
    folders["cache-dir"] = str(places["CACHE"])
    return run_config | folders | {"wire-dtype": "int8-delta", "num-clients": 2, "num-rounds": 1, "tracker": "auto"}


@pytest.mark.slow
@pytest.mark.plots
def test_a_run_that_completes_leaves_what_the_table_says(settings, places):
    assert run_in_child(settings)[0] == 0
    assert json.loads((places["RUN"] / "summary.json").read_text())["status"] == "completed"
    compare("completed", SERVER_AND_SITE, places)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["auxiliary", "round"])
def test_a_run_that_is_killed_leaves_what_the_table_says(settings, places, monkeypatch, where):
    """While the server samples the clients' own models, and after a round, when the clients have their states."""
    kind, name = {"auxiliary": (BatchFiles, "save"), "round": (RunRecorder, "save_checkpoint")}[where]
    work = getattr(kind, name)

    def work_and_die(self, key, *arguments):
        work(self, key, *arguments)
        if key != 0:  # the checkpoint before the rounds
            os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(kind, name, work_and_die)
    assert run_in_child(settings)[0] == signal.SIGKILL
    if where == "round":
        assert [*places["STATE"].glob("run-*/client-*")]
    else:
        assert [*places["RUN"].glob("unfinished/pretrain-*")]
    compare("died", SERVER_AND_SITE, places)


@pytest.fixture
def fetch(tmp_path, places, monkeypatch):
    """Call `fedddpm fetch` in a child, which can be killed; the run directory has a link and working files."""
    run = tmp_path / "server" / "run-a"
    (run / "scratch").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"run_id": "12"}))
    (run / "scratch" / "reply").write_text("weights")
    (tmp_path / "home" / "flwr").mkdir()
    (tmp_path / "home" / "flwr" / "config.toml").write_text('[superlink]\n[superlink.lab]\naddress = "x:1"\n')
    monkeypatch.setattr(FlowerRun, "log", lambda self: iter([f"[fedddpm] run directory: {run}"]))
    monkeypatch.setattr(FlowerRun, "status", lambda self: COMPLETED)

    def call(lines):
        monkeypatch.setattr(FlowerRun, "lines", lambda self: lines(lines_of(run, 1.0, 1.0, 10)))
        child = os.fork()
        if child == 0:
            try:
                done = CliRunner().invoke(app, ["fetch", "12", "--superlink", "lab", "--out", str(tmp_path / "runs")])
                os._exit(done.exit_code)
            finally:
                os._exit(99)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    return call


def test_fetch_leaves_on_a_laptop_what_the_table_says(fetch, places, tmp_path):
    here = {"RUNS": tmp_path / "runs", "TMP": places["TMP"]}

    def two_lines_and_death(lines):
        yield from itertools.islice(lines, 2)
        os.kill(os.getpid(), signal.SIGKILL)

    assert fetch(two_lines_and_death) == -signal.SIGKILL
    assert [*here["RUNS"].glob("fedddpm-incoming-*/files/config.json")]
    compare("died", LAPTOP, here)
    assert all(item.remove() for item in find_left_overs(tmp_path / "runs"))
    assert fetch(iter) == 0
    compare("completed", LAPTOP, here)
