"""Two Ray nodes, of which the second is as another host: an address and, where it may, a /dev/shm of its own."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fedddpm_app.launch.simulation import free_port
from tests.conftest import RunDirectory
from tests.e2e.test_flwr_run import fedddpm_run, left_behind

SECOND_IP = "127.0.0.2"
OWN_SHM = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "sh"]
START_SECONDS = 60.0


def can_hide_shared_memory() -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run([*OWN_SHM, "true"], capture_output=True, check=False).returncode == 0
    return False


@contextlib.contextmanager
def ray_node(*arguments: str, within: list[str] | None = None) -> Iterator[psutil.Popen]:
    """One node, in the foreground of a process of ours; Ray's sockets want a short path, so not tmp_path."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "start.txt"
        start = [*(within or []), str(Path(sys.executable).parent / "ray"), "start", "--block", *arguments]
        start += [f"--temp-dir={folder}/ray", "--num-cpus=1", "--num-gpus=1", f"--object-store-memory={100 << 20}"]
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_USAGE_STATS_ENABLED": "0"}
        with log.open("w") as out:
            process = psutil.Popen(start, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            until = time.monotonic() + START_SECONDS
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            yield process
        finally:
            started = process.children(recursive=True) if process.is_running() else []
            process.terminate()  # `ray start --block` stops its node
            _, alive = psutil.wait_procs([process, *started], timeout=15)
            for each in alive:
                with contextlib.suppress(psutil.Error):
                    each.kill()
            psutil.wait_procs(alive, timeout=5)


def actors_of(node: psutil.Popen) -> list[str]:
    found = []
    for process in node.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            found += [name for name in process.cmdline()[:1] if name.startswith("ray::ClientAppActor")]
    return found


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(420)
def test_two_nodes_of_a_ray_cluster_equal_the_inprocess_engine(tmp_path, shared_run, monkeypatch):
    port = free_port()
    address = f"127.0.0.1:{port}"
    apart = can_hide_shared_memory()
    head = ("--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false")
    second = (f"--address={address}", f"--node-ip-address={SECOND_IP}")
    with ray_node(*head) as one, ray_node(*second, within=OWN_SHM if apart else None) as two:
        monkeypatch.setenv("RAY_ADDRESS", address)
        shares = ("--federation-config", "client-resources-num-gpus=0.5")  # Ray takes our word that there are GPUs
        done = fedddpm_run(tmp_path, *shares, output_dir="out", run_name="sim")
        assert done.returncode == 0, done.stdout + done.stderr
        run = RunDirectory(tmp_path / "out" / "sim")
        assert not left_behind(tmp_path)
        assert [node.poll() for node in (one, two)] == [None, None], "the cluster outlives the run"
        until = time.monotonic() + 20
        while (actors := actors_of(one) + actors_of(two)) and time.monotonic() < until:
            time.sleep(0.2)
        assert not actors, "its actors do not"
    log = (run.path / "log.txt").read_text().splitlines()
    worked = [line for line in log if "ClientAppActor pid=" in line and "phase=" in line]
    assert {f"ip={SECOND_IP}" in line for line in worked} == {True, False}, "both nodes worked"
    assert any("not every client runs on this host" in line for line in log) == apart
    assert run.losses() == shared_run().losses()
