"""Attacks on `fedddpm fetch`: a server's folder that holds more than a run, and a server that sends what it likes."""

import base64
import hashlib
import itertools
import json
import os
import socket

import pytest
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.launch.delivery import MARK, check_directory, lines_of
from fedddpm_app.launch.flower_run import COMPLETED, FlowerRun

ABOUT = json.dumps({"run_id": "12"})


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """Call `fedddpm fetch 12` with the lines of a delivery; return its exit code and its output on one line."""
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "flwr"))
    (tmp_path / "flwr").mkdir()
    (tmp_path / "flwr" / "config.toml").write_text('[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "x:1"\n')
    monkeypatch.setattr(FlowerRun, "log", lambda self: iter(["[fedddpm] run directory: /results/runs/run-a"]))
    monkeypatch.setattr(FlowerRun, "status", lambda self: COMPLETED)

    def call(lines, *options):
        monkeypatch.setattr(FlowerRun, "lines", lambda self: iter(lines))
        done = CliRunner().invoke(app, ["fetch", "12", "--out", str(tmp_path / "out"), *options])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, " ".join(done.output.split())

    return call


def line(kind, about):
    return f"{MARK} {kind} {json.dumps(about)}"


def one(name, content=b"x", size=None):
    """The lines of one file."""
    sha256 = hashlib.sha256(content).hexdigest()
    about = {"path": name, "bytes": len(content) if size is None else size}
    data = f"{MARK} data {base64.b64encode(content).decode()}"
    return [line("file", about), data, line("done", {"path": name, "sha256": sha256})]


def whole(*files):
    """The lines of a delivery of files."""
    return [*itertools.chain(*files), line("end", {"files": len(files)})]


def below(folder):
    """The names of everything in a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_run_directory_gives_out_only_the_files_of_the_run(tmp_path, fetch):
    """Links, hard links, sockets, pipes, and the clients' models that a run still works with stay on the server."""
    run, secret = tmp_path / "run-a", tmp_path / "server.key"
    secret.write_text("secret")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "ca.key").write_text("secret")
    for folder in ("scratch", "unfinished", "samples", "client-state", "tracking"):
        (run / folder).mkdir(parents=True)
        (run / folder / "file").write_text(folder)
    (run / "config.json").write_text(ABOUT)
    (run / "link").symlink_to(secret)
    (run / "folder").symlink_to(tmp_path / "keys")
    os.link(secret, run / "hard")
    os.mkfifo(run / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(run / "socket"))
        code, output = fetch(lines_of(run, 1.0, 10.0, 100))
    assert code == 0, output
    received = below(tmp_path / "out" / "run-a")
    assert received == ["config.json", "log.txt", "samples", "samples/file"]
    for name in ("link", "hard", "folder", "pipe", "socket"):
        assert f"/results/runs/run-a/{name}" in output


def test_a_link_to_a_run_directory_is_not_a_run_directory(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(ABOUT)
    (tmp_path / "other").symlink_to(tmp_path / "run")
    with pytest.raises(ValueError, match="is a link"):
        check_directory(tmp_path / "other", "12")
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "config.json").symlink_to(tmp_path / "run" / "config.json")
    with pytest.raises(ValueError, match="is not a run directory"):
        check_directory(tmp_path / "made", "12")


@pytest.mark.parametrize(
    "name",
    ["a\x1b[2Jb", "a\nb", "a\u202eb", ".git/config", "a/.envrc", "log.txt", "LOG.TXT", "scratch/x", "unfinished/x",
     "tracking/x", "/".join("a" * 99), "a" * 300, "x.py", "plots/pyproject.toml",
     "x.so.1", "x.dylib", "a.pyw", "x.py.bak", "run.sh", "Makefile", "plots/GNUmakefile", "setup.cfg", "a.ipynb"],
)  # fmt: skip
def test_a_name_that_a_run_does_not_have_is_refused(fetch, tmp_path, name):
    code, output = fetch(whole(one("config.json"), one(name)))
    assert (code, "is refused" in output) == (1, True), output
    assert "\x1b" not in output
    assert below(tmp_path / "out" / "run-a") == ["log.txt"]


@pytest.mark.parametrize(
    "names", [("a", "A"), ("a", "a"), ("x/a", "X/b"), ("é", "e\u0301"), ("a", "a/b"), ("a/b", "a")]
)
def test_names_that_are_one_name_on_some_machines_are_refused(fetch, tmp_path, names):
    code, output = fetch(whole(*map(one, names)))
    assert (code, "is refused" in output) == (1, True), output
    assert below(tmp_path / "out" / "run-a") == ["log.txt"]


@pytest.mark.parametrize("size", [float("inf"), float("nan"), -1, 1.5, True, "1", None, 10**400, 2, 0])
def test_a_size_that_is_no_size_or_not_that_of_the_file_is_refused(fetch, tmp_path, size):
    lines = one("model")
    lines[0] = line("file", {"path": "model", "bytes": size})
    code, output = fetch(whole(lines))
    assert code == 1
    assert "model" in output
    assert "bytes" in output
    assert below(tmp_path / "out" / "run-a") == ["log.txt"]


@pytest.mark.parametrize("size", [float("inf"), -1, "1"])
def test_the_size_of_a_file_that_stays_is_checked_too(fetch, size):
    code, output = fetch([line("left", {"path": "model", "bytes": size, "why": "size"}), *whole()])
    assert code == 1
    assert "bytes" in output


@pytest.mark.parametrize("files", [float("inf"), -1, "1", 2, None])
def test_a_wrong_number_of_files_is_refused(fetch, tmp_path, files):
    code, _ = fetch([*one("model"), line("end", {"files": files})])
    assert code == 1
    assert below(tmp_path / "out" / "run-a") == ["log.txt"]


def test_a_delivery_has_a_largest_size_and_number_of_files(fetch, tmp_path, monkeypatch):
    big = b"x" * 600_000
    code, output = fetch(whole(one("a", big), one("b", big)), "--total-mb", "1")
    assert code == 1
    assert "--total-mb" in output
    assert below(tmp_path / "out" / "run-a") == ["log.txt"]
    assert fetch(whole(one("a", big), one("b", big), one("config.json", ABOUT.encode())), "--total-mb", "2")[0] == 0
    monkeypatch.setattr("fedddpm_app.limits.DELIVERY_FILES", 3)
    code, output = fetch(whole(*(one(f"new-{k}") for k in range(4))))
    assert code == 1
    assert "more than 3 files" in output
    code, output = fetch([line("left", {"path": f"left-{k}", "bytes": 1, "why": "size"}) for k in range(4)])
    assert code == 1
    assert "more than 3 files" in output
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "b"):
        (run / name).write_bytes(big)
    with pytest.raises(ValueError, match=r"has 1\.2 MB in 2 files"):
        [*lines_of(run, 1.0, 1.0, 3)]


def test_a_file_larger_than_it_says_is_not_written(fetch, tmp_path, monkeypatch):
    """Else a server fills the disk with one file, and the refusal comes after it."""
    written = []
    chunk = f"{MARK} data {base64.b64encode(b'x' * 1000).decode()}"

    def lines():
        yield line("file", {"path": "a", "bytes": 1500})
        for _ in range(1000):
            written.append(1)
            yield chunk

    assert fetch(lines())[0] == 1
    assert len(written) == 2


@pytest.mark.parametrize("link", ["samples", "samples/x.png", "log.txt", "."])
def test_nothing_is_written_through_a_link_here(fetch, tmp_path, link):
    """A link in the receiver's folder, such as one of an unpacked archive, does not send the files elsewhere."""
    elsewhere, target = tmp_path / "elsewhere", tmp_path / "out" / "run-a"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text(ABOUT)
    (elsewhere / "file").write_text("mine")
    place = target / link
    place.parent.mkdir(parents=True, exist_ok=True)
    if link != ".":
        target.mkdir(exist_ok=True)
        (target / "config.json").write_text(ABOUT)
    else:
        place = target
    place.symlink_to(elsewhere / "file" if "." in link[1:] else elsewhere)
    before = below(elsewhere)
    code, output = fetch(whole(one("config.json", ABOUT.encode()), one("samples/x.png", b"new")))
    assert below(elsewhere) == before
    assert (elsewhere / "file").read_text() == "mine"
    assert code == 0 or "link" in output


def test_a_delivery_that_breaks_off_changes_nothing(fetch, tmp_path):
    """Neither a new file nor a changed one is taken over, and nothing of it stays."""
    target = tmp_path / "out" / "run-a"
    target.mkdir(parents=True)
    (target / "config.json").write_text(ABOUT)
    (target / "stats.jsonl").write_text("old")
    lines = whole(one("config.json", ABOUT.encode()), one("stats.jsonl", b"new"), one("samples/new.png"))
    for broken in (lines[:-1], lines[:4], [*lines[:5], f"{MARK} data ~~~"], [*lines[:-1], "nothing", ""]):
        assert fetch(broken)[0] == 1
        assert (target / "stats.jsonl").read_text() == "old"
        assert below(tmp_path / "out") == ["run-a", "run-a/config.json", "run-a/log.txt", "run-a/stats.jsonl"]
    assert fetch(lines)[0] == 0
    assert (target / "stats.jsonl").read_text() == "new"


def test_what_is_received_is_for_this_user_alone(fetch, tmp_path):
    before = os.umask(0)
    try:
        assert fetch(whole(one("config.json", ABOUT.encode()), one("samples/x.png")))[0] == 0
    finally:
        os.umask(before)
    for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize(
    "summary",
    [
        {"[/x]": 1, "[link=file:///x]a": 2, "\x1b[2Jb": 3, "error": "\x1b]0;title\x07"},
        {"loss": 10**400},
        *({"metrics": metrics} for metrics in ([1], [{}], [{"n": "\x1b[2J"}])),
    ],
)
def test_a_fetched_summary_neither_stops_the_command_nor_controls_the_terminal(fetch, summary):
    text = json.dumps({"status": "failed"} | summary).encode()
    code, output = fetch(whole(one("config.json", ABOUT.encode()), one("summary.json", text)))
    assert (code, "run directory: " in output) == (0, True), output
    assert not {"\x1b", "\x07"} & set(output)
