"""Deaths and hangs under Ray: each costs one reply of one client, and every later round has all clients."""

import re
import shutil
import subprocess

import pytest

from fedddpm_app.launch.new_app import write_new_app
from tests.conftest import ROOT, RunDirectory
from tests.e2e.test_flwr_run import command, left_behind, marked
from tests.e2e.test_ray_cluster import OWN_SHM, can_hide_shared_memory
from tests.faults.wrapper import VARIABLE

CLIENT_APP = """
import resource

from fedddpm_app.client.forwarding import ForwardingClientApp


def use_up_the_memory(app, message, context):
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))  # for the rest of this process's life
    return bytearray(1 << 31)


def create():
    import wrapper
    from fedddpm_app.apps.client import diffusion_client_app

    wrapper.FAULTS["memory"] = use_up_the_memory
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

    def run(faults, actors, **overrides):
        arguments = command(
            *("--app", str(folder), "--federation-config", f"init-args-num-cpus={actors}"),
            **{"output_dir": "out", "run_name": "sim", "algorithm": "fedddpm", "algorithm_options": ""} | overrides,
        )
        environment = marked(tmp_path) | {VARIABLE: faults, "RAY_memory_usage_threshold": "0.01"}  # Ray kills no actor
        done = subprocess.run(
            [*within, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert not left_behind(tmp_path)
        assert not within or done.stdout.endswith("left in /dev/shm: \n"), done.stdout[-300:]
        return RunDirectory(tmp_path / "out" / "sim")

    return run


def left_out(run):
    """The clients that were left out in each phase and round, with the reasons."""
    rows = {"pretrain": {}} | {f"round {row['round']}": {} for row in run.rounds()}
    for row in run.stats:
        name = row["phase"] if row["phase"] == "pretrain" else f"round {row.get('round')}"
        if name in rows:
            rows[name] = row.get("pretrain/left_out", {}) | row.get("train/left_out", {})
    return rows


def check(run, expected):
    found = left_out(run)
    assert {name: set(reasons) for name, reasons in found.items()} == {
        name: {client for client, _ in [expected[name]] if client} for name in found
    }
    for name, (client, reason) in expected.items():
        assert not client or re.search(reason, found[name][client]), found[name]


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_every_round_after_a_fault_has_all_clients_again(run_with_faults):
    faults = "pretrain:3:*:hang train:1:1:kill train:2:2:os-exit train:3:3:exit train:0:4:memory"
    run = run_with_faults(faults, actors=2, num_rounds=5, pretrain_timeout=20.0)
    expected = {
        "pretrain": ("3", "its process did not answer within 20 s, and was stopped"),
        "round 1": ("1", r"its process died \(signal 9: out of memory\?\)"),
        "round 2": ("2", "its process exited with code 3"),
        "round 3": ("3", "its process exited with code 3"),
        "round 4": ("0", "MemoryError"),
        "round 5": ("", ""),
    }
    check(run, expected)
    assert run.summary["status"] == "completed"


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(420)
def test_a_death_does_not_cost_the_only_actor(run_with_faults):
    run = run_with_faults("train:1:1:kill", actors=1, num_rounds=2, pretrain_steps=1)
    check(run, {"pretrain": ("", ""), "round 1": ("1", "its process died"), "round 2": ("", "")})
