"""Machines that cannot run an experiment: each is refused with one sentence, before anything is prepared."""

import http.server
import resource
import socket
import tempfile
import threading
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.data.store import cache_folder
from fedddpm_app.launch import connection, preflight, resources

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with 2 CPUs and no cluster, whose environment is ours alone."""
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "FLWR_HOME", "HTTP_PROXY", "http_proxy", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.setattr(resources, "usable_cpus", lambda: 2)
    return monkeypatch


@pytest.mark.parametrize(
    ("overrides", "federation", "says"),
    [
        ({"client-threads": 8}, {}, r"client-threads = 8 is more than the 2 CPUs .* 'init-args-num-cpus=8'"),
        ({}, {"client-resources-num-cpus": 3}, "client-resources-num-cpus = 3 is more than the 2 CPUs"),
        ({"client-threads": 4}, {"init-args-num-cpus": 3}, "than the 3 CPUs that init-args-num-cpus = 3 allows"),
        ({}, {"client-resources-num-cpus": 0}, "client-resources-num-cpus = 0 .* whole number"),
        ({}, {"client-resources-num-cpus": 0.5}, "client-resources-num-cpus = 0.5 .* whole number"),
        ({}, {"client-resources-num-gpus": 1}, "client-resources-num-gpus = 1 is more than the 0 GPUs here"),
        ({}, {"client-resources-num-gpus": -1}, "client-resources-num-gpus = -1"),
        ({}, {"client-resources-num-gpus": "half"}, "client-resources-num-gpus = 'half'"),
    ],
)
def test_more_than_the_machine_has_is_refused(machine, run_config, overrides, federation, says):
    machine.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=says):
        preflight.check_simulation(load_config(run_config | overrides), federation)


def test_threads_may_share_cpus_and_this_is_said(machine, run_config):
    eight = load_config(run_config | {"client-threads": 8})
    federation = {"init-args-num-cpus": 8}
    preflight.check_simulation(eight, federation)
    assert resources.crowding(eight, {}, simulated=False).startswith("1 clients at once x client-threads = 8: 8")
    assert "4 clients at once x client-threads = 1: 4" in resources.crowding(
        load_config(run_config | {"num-clients": 4}), {"init-args-num-cpus": 9}, simulated=True
    )
    assert "server-threads = 3" in resources.crowding(
        load_config(run_config | {"server-threads": 3}), {}, simulated=True
    )
    assert resources.crowding(load_config(run_config), {}, simulated=True) == ""


def test_ray_gets_the_cpus_that_the_process_may_use_except_on_a_cluster(machine, run_config):
    config = load_config(run_config)
    assert resources.simulation_resources(config, {})["init-args-num-cpus"] == 2
    assert resources.simulation_resources(config, {"init-args-num-cpus": 5})["init-args-num-cpus"] == 5
    machine.setenv("RAY_ADDRESS", "local")
    assert "init-args-num-cpus" in resources.simulation_resources(config, {})
    machine.setenv("RAY_ADDRESS", "host:6379")
    machine.setenv("TMPDIR", "/" + "x" * 200)
    assert "init-args-num-cpus" not in resources.simulation_resources(config, {})
    preflight.check_simulation(load_config(run_config | {"client-threads": 64}), {})  # only Ray knows the cluster


@pytest.mark.parametrize(
    ("variable", "folder", "says"),
    [
        ("TMPDIR", "/net/scratch/people/somebody/slurm_jobdir/1355700", "has 49 bytes.*set RAY_TMPDIR .*at most 39"),
        ("TMPDIR", "/äöü" + "ä" * 18, "has 43 bytes"),
        ("RAY_TMPDIR", "/" + "r" * 39, "RAY_TMPDIR = .* has 40 bytes"),
        ("TMPDIR", "tmp", 'TMPDIR = "tmp" is not an absolute path'),
        ("TMPDIR", "/dev/null/x", "/dev/null/x cannot be made"),
        ("TMPDIR", "/proc/x", r"TMPDIR = .*/proc/x cannot be written"),
    ],
)
def test_a_temporary_folder_that_ray_cannot_use_is_refused(machine, run_config, variable, folder, says):
    machine.setenv(variable, folder)
    with pytest.raises(ConfigError, match=says):
        preflight.check_simulation(load_config(run_config), {})


def test_a_temporary_folder_of_the_longest_length_is_taken(machine, run_config):
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="t" * 26))
    assert len(str(folder)) == 39
    machine.setenv("TMPDIR", str(folder))
    try:
        preflight.check_simulation(load_config(run_config), {})
        assert list(folder.iterdir()) == []  # nothing is left
    finally:
        folder.rmdir()


def test_a_full_disk_is_refused_by_its_free_space_and_by_a_write(machine, tmp_path):
    inside = tmp_path / "a" / "b"
    preflight.check_folder('output-dir = "a/b"', inside, 10)
    machine.setattr(preflight.shutil, "disk_usage", lambda _: Usage(1, 1, 2_000_000))
    with pytest.raises(ConfigError, match=r'output-dir = "a/b": .* has only 2.0 MB of free space; .* 10 MB or more'):
        preflight.check_folder('output-dir = "a/b"', inside, 10)
    with pytest.raises(ConfigError, match=r"/dev/full.* cannot be made \(/dev/full is not a folder\)"):
        preflight.check_folder("cache-dir", Path("/dev/full/x"), 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "place", "says"),
    [
        ("_LOOPBACK", "203.0.113.1", r"203\.0\.113\.1 cannot be used \(.*ip link set lo up.*--engine inprocess"),
        ("_SHARED_MEMORY", Path("/nowhere"), "/nowhere cannot be written .* --shm-size"),
    ],
)
def test_ray_needs_the_loopback_and_shared_memory(machine, run_config, name, place, says):
    machine.setattr(preflight, name, place)
    with pytest.raises(ConfigError, match=says):
        preflight.check_simulation(load_config(run_config), {})


def test_few_open_files_are_refused(machine, run_config):
    machine.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(ConfigError, match="ulimit -n = 64 allows too few open files"):
        preflight.check_simulation(load_config(run_config), {})


def test_no_temporary_folder_at_all_is_refused(machine):
    def nowhere():
        raise FileNotFoundError(2, "No usable temporary directory found")

    machine.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(ConfigError, match='TMPDIR = "/tmp": no folder'):
        preflight.check_temporary_folder()


@pytest.fixture
def flower_home(machine, tmp_path):
    def write(address):
        (tmp_path / "config.toml").write_text(f'[superlink]\ndefault = "lab"\n[superlink.lab]\naddress = "{address}"\n')

    machine.setenv("FLWR_HOME", str(tmp_path))
    return write


def test_a_superlink_must_answer(flower_home):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        flower_home(f"127.0.0.1:{port}")
        with pytest.raises(ConfigError, match=r'"lab": nothing answers at 127.0.0.1:\d+ \(Connection refused\)'):
            connection.check_reachable("lab")
        listening.listen()
        connection.check_reachable("lab")


def test_a_busy_port_of_the_local_superlink_is_refused(flower_home, machine):
    flower_home(":local:")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        machine.setenv("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", str(other.server_port))
        with pytest.raises(ConfigError, match="set FLWR_LOCAL_SUPERLINK_HTTP_API_PORT to a free port"):
            connection.check_reachable("lab")
        other.shutdown()
    connection.check_reachable("lab")  # free again


def test_a_user_without_a_home_folder_is_refused(machine, run_config):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    machine.setattr(Path, "home", nowhere)
    machine.setattr(Path, "expanduser", lambda self: nowhere())
    machine.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(ConfigError, match="FLWR_HOME is not set, and there is no home folder"):
        connection.check_connection("lab")
    with pytest.raises(ConfigError, match="set HOME or XDG_CACHE_HOME"):
        cache_folder(load_config(run_config | {"cache-dir": ""}).data)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "create it with `flwr config list`"),
        (lambda path: path.mkdir(), "make it readable, or set FLWR_HOME"),
        (lambda path: path.write_text("[superlink"), "correct it as TOML"),
        (lambda path: path.write_bytes(b"\xff"), "correct it as TOML"),
    ],
)
def test_an_unreadable_flower_home_is_refused(machine, tmp_path, make, says):
    machine.setenv("FLWR_HOME", str(tmp_path))
    make(tmp_path / "config.toml")
    with pytest.raises(ConfigError, match=says):
        connection.check_connection("lab")
