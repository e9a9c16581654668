"""Deaths and hangs under Ray: each costs one reply of one client, and every later phase has all clients."""

import re
import shutil
import subprocess
import sys

import pytest

from fedddpm_app.launch.new_app import write_new_app
from tests.conftest import ROOT, RunDirectory
from tests.e2e.test_flwr_run import command, left_behind, marked
from tests.e2e.test_ray_cluster import OWN_SHM, can_hide_shared_memory
from tests.faults.wrapper import VARIABLE

CLIENT_APP = """
import os
import resource
import signal
import time

from fedddpm_app.client.forwarding import ForwardingClientApp


def use_up_the_memory(app, message, context):
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))  # for the rest of this process's life
    return bytearray(1 << 31)


def kill_the_actor(app, message, context):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def create():
    import wrapper
    from fedddpm_app.apps.client import diffusion_client_app

    wrapper.FAULTS |= {"memory": use_up_the_memory, "kill-actor": kill_the_actor}
    return wrapper.FaultyClientApp(diffusion_client_app())


app = ForwardingClientApp("client_app:create")
"""
LISTED = [*OWN_SHM, "sh", "-c", '"$@"; code=$?; echo "left in /dev/shm: $(ls -A /dev/shm)"; exit $code', "sh"]


@pytest.fixture
def run_with_faults(tmp_path):
    """Run an app folder of a user, whose client_app.py plants faults, with a number of actors."""
    folder = tmp_path / "my-app"
    within = LISTED if can_hide_shared_memory() else []  # a /dev/shm of its own, which is listed at the end
    write_new_app(folder)
    (folder / "client_app.py").write_text(CLIENT_APP)
    shutil.copyfile(ROOT / "tests" / "faults" / "wrapper.py", folder / "wrapper.py")

    def run(faults, actors, code=0, resume=False, **overrides):
        places = ("--app", str(folder), "--federation-config", f"init-args-num-cpus={actors}")
        fixed = {"output_dir": "out", "run_name": "sim", "algorithm": "fedddpm", "algorithm_options": ""}
        resumed = [sys.executable, "-m", "fedddpm_app.cli", "run", *places, "--resume", str(tmp_path / "out" / "sim")]
        arguments = resumed if resume else command(*places, **fixed | overrides)
        environment = marked(tmp_path) | {VARIABLE: faults, "RAY_memory_usage_threshold": "0.01"}  # Ray kills no actor
        environment["RAY_worker_niceness"] = "0"  # beside other tests, actors would hardly run
        done = subprocess.run(
            [*within, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert not left_behind(tmp_path)
        assert not within or done.stdout.endswith("left in /dev/shm: \n"), done.stdout[-300:]
        return RunDirectory(tmp_path / "out" / "sim")

    return run


def left_out(run):
    """The clients that were left out, with the reasons, by phase and round."""
    return {
        f"{key.removesuffix('/left_out')} {row.get('round', 0)}": reasons
        for row in run.stats
        for key, reasons in row.items()
        if key.endswith("/left_out")
    }


def check(run, faults):
    """Exactly the clients with a planted fault are missing, and only in its phase and round, for its reason."""
    expected = {}
    for fault in faults.split():
        phase, client, server_round, kind = fault.split(":")
        name = {"evaluate": "client-eval"}.get(phase, phase)
        expected.setdefault(f"{name} {server_round}", {})[client] = REASONS[kind]
    found = left_out(run)
    assert {name: set(reasons) for name, reasons in found.items()} == {
        name: set(reasons) for name, reasons in expected.items()
    }
    for name, reasons in expected.items():
        for client, reason in reasons.items():
            assert re.search(reason, found[name][client]), found[name]
    assert run.summary["status"] == "completed"


REASONS = {
    "hang": "its process did not answer within [0-9]+ s, and was stopped",
    "kill": r"its process died \(signal 9: out of memory\?\)",
    "os-exit": "its process exited with code 3",
    "exit": "its process exited with code 3",
    "memory": "MemoryError",
}
NODES = {"auxiliary_generation": "nodes", "pretrain_timeout": 20.0, "round_timeout": 20.0}


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(420)
def test_every_phase_after_a_fault_has_all_clients_again(run_with_faults):
    faults = (
        "pretrain:3:0:hang generate:2:0:kill train:1:1:kill evaluate:0:1:os-exit train:2:2:os-exit evaluate:1:2:kill "
        "train:3:3:exit train:0:4:memory evaluate:2:4:exit train:1:5:hang evaluate:3:6:memory"
    )
    check(run_with_faults(faults, actors=2, num_rounds=7, **NODES), faults)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(420)
def test_other_faults_in_other_phases(run_with_faults):
    faults = (
        "pretrain:0:0:memory pretrain:2:0:os-exit generate:1:0:hang generate:3:0:memory evaluate:2:1:hang "
        "train:0:2:os-exit train:1:2:memory evaluate:0:2:memory evaluate:3:2:kill"
    )
    check(run_with_faults(faults, actors=2, num_rounds=3, **NODES), faults)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(420)
def test_faults_do_not_cost_the_only_actor_nor_the_replies_of_the_clients_behind_it(run_with_faults):
    faults = "pretrain:0:0:hang generate:1:0:hang train:1:1:kill train:0:2:hang evaluate:0:3:hang"
    check(run_with_faults(faults, actors=1, num_rounds=4, **NODES), faults)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(420)
def test_a_killed_actor_ends_the_run_which_continues_without_a_loss(run_with_faults):
    """Flower would give each later message to the dead actor first."""
    run = run_with_faults("train:1:2:kill-actor", actors=2, code=1, num_rounds=3)
    assert run.summary["status"] == "failed"
    assert "a Ray actor was killed" in run.summary["error"]
    assert [row["round"] for row in run.rounds()] == [1]
    check(run_with_faults("", actors=2, resume=True), "")
