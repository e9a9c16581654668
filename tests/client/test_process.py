"""A Ray actor's child process without Ray: whatever happens to it, the parent goes on with a new one."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest
from flwr.app import Context, Message, RecordDict

from fedddpm_app.client.forwarding import ForwardingClientApp
from fedddpm_app.client.process import ClientProcess, ClientProcessError
from fedddpm_app.federation.messages.deadlines import TIME_LIMIT, seconds_left, seconds_to_work, time_limit
from tests.client.faulty import FAULTS, message_of
from tests.conftest import ROOT

FAULTY = "tests.client.faulty:create"


@pytest.fixture
def context():
    return Context(run_id=7, node_id=1000, node_config={"partition-id": 0}, state=RecordDict(), run_config={})


@pytest.fixture
def process():
    process = ClientProcess(FAULTY)
    yield process
    process.stop()


@pytest.fixture
def ask(process, context):
    return lambda fault="", **timeout: process.answer(message_of(fault, **timeout), context).content["metrics"]


def gone(pid):
    """Whether a process ends within a second; one that nobody waits for may stay as a zombie."""
    until = time.monotonic() + 1
    while time.monotonic() < until:
        with contextlib.suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
                continue
        return True
    return False


def test_one_process_answers_message_after_message_with_the_clients_state(ask, context):
    first, second = ask(), ask()
    assert first["pid"] == second["pid"] != os.getpid()
    assert (first["count"], second["count"]) == (1, 2)
    assert context.state["seen"]["count"] == 2
    assert (second["run"], second["node"]) == (7, 1000)
    assert second["torch"] == 0


DEATHS = {
    "exit": r"^its process exited with code 3$",
    "exit at once": r"^its process exited with code 0$",
    "kill": r"^its process died \(signal 9: out of memory\?\)$",
    "abort": r"^its process died \(signal 6: Aborted\)$",
    "hang": r"^its process did not answer within 0.6 s, and was stopped$",
    "hold": r"^its process did not answer within 0.6 s, and was stopped$",
}


@pytest.mark.slow
def test_every_death_costs_one_message(ask):
    pids = [ask()["pid"]]
    for fault, reason in DEATHS.items():
        began = time.monotonic()
        with pytest.raises(ClientProcessError, match=reason):
            ask(fault, timeout=0.6 if fault in ("hang", "hold") else 100.0)
        assert time.monotonic() - began < 5, fault
        pids.append(ask()["pid"])
    assert len(set(pids)) == len(pids)
    assert all(gone(pid) for pid in pids[:-1])


RAISED = {
    "diverge": ("RuntimeError", "its training diverged"),
    "allocate": ("MemoryError", ""),
    "unpicklable": ("UnpicklableError", "it holds a lock"),
    "gpu": ("RuntimeError", "the step failed"),
    "none": ("TypeError", "its ClientApp returned NoneType, not a Message"),
}
FINAL = {"allocate", "gpu"}  # memory ran out, or the GPU cannot be used any more


def test_an_exception_keeps_its_class_name_and_its_text(ask, context):
    pid = ask()["pid"]
    for fault, (name, text) in RAISED.items():
        with pytest.raises(Exception, match=f"^{text}") as caught:
            ask(fault)
        assert type(caught.value).__name__ == name
        assert "Traceback" in caught.value.__notes__[0]
        before, pid = pid, ask()["pid"]
        assert (pid != before) == (fault in FINAL), fault
    assert context.state["seen"]["count"] == 1 + len(RAISED)


def test_an_app_that_cannot_be_created_answers_with_the_reason(context):
    for app, reason in {
        "tests.client.faulty:broken": "no such package",
        "no_such_module:create": "no_such_module",
    }.items():
        with pytest.raises(Exception, match=reason):
            ClientProcess(app).answer(message_of(""), context)


def test_an_app_that_could_not_be_created_is_created_for_the_next_message(context, tmp_path, monkeypatch):
    monkeypatch.setenv("NEEDED", str(tmp_path / "needed"))
    process = ClientProcess("tests.client.faulty:needy")
    with pytest.raises(Exception, match=r"No such file.*needed"):
        process.answer(message_of(""), context)
    (tmp_path / "needed").touch()
    assert process.answer(message_of(""), context).content["metrics"]["count"] == 1
    process.stop()


def test_a_process_that_dies_unnoticed_between_messages_costs_none(ask, process, monkeypatch):
    pid = ask()["pid"]
    monkeypatch.setattr(process._child, "is_alive", lambda: True)  # a large process takes a while to end
    os.kill(pid, signal.SIGKILL)
    assert ask()["pid"] != pid


def test_a_start_that_takes_longer_than_a_message_goes_on_for_the_next(context):
    process = ClientProcess("tests.client.faulty:slow")
    with pytest.raises(ClientProcessError, match=r"its process had not started in time"):
        process.answer(message_of("", timeout=0.5), context)
    asked = time.time()
    pid = process.answer(message_of(""), context).content["metrics"]["pid"]
    assert psutil.Process(pid).create_time() < asked - 0.4
    process.stop()


def test_a_message_that_waited_too_long_is_not_started(process, context):
    late = message_of("", timeout=0.01)
    time.sleep(0.02)
    with pytest.raises(ClientProcessError, match=r"waited for a free actor, and did not start before"):
        process.answer(late, context)


def test_the_time_limit_is_the_servers(context):
    message = message_of("", timeout=3600.0)
    assert time_limit(message) == 3600.0
    assert 3590 < seconds_left(message) < 3600, "a little before, so that the reason arrives"
    assert time_limit(Message(RecordDict(), dst_node_id=1, message_type="query", ttl=10.0)) == 10.0


def test_the_time_limit_counts_from_the_start_of_the_work(process, context, monkeypatch):
    """Else the messages that wait behind a client that hangs would have no time left."""
    message = message_of("", timeout=10.0, queue=1)
    message.content["config"][TIME_LIMIT] = 10.0
    for waited, left in ((0, 9.0), (360, 9.0), (365, 4.0), (371, -2.0)):
        began = message.metadata.created_at + waited
        monkeypatch.setattr("fedddpm_app.federation.messages.deadlines.time.time", lambda began=began: began)
        assert seconds_to_work(message) == pytest.approx(left)
    with pytest.raises(ClientProcessError, match=r"waited for a free actor, and did not start before"):
        process.answer(message, context)


def test_what_the_client_prints_is_seen_and_what_it_starts_ends_with_it(process, ask, capfd):
    process.stop()  # the next one has the output that is captured here
    ask("print")
    assert capfd.readouterr().out == "a line of the client\n"
    started = int(ask("start")["value"])
    with pytest.raises(ClientProcessError):
        ask("kill")
    assert gone(started)


def test_the_processes_end_with_their_parent():
    """Whatever they do at that moment: wait, sleep, or keep Python's interpreter to themselves."""
    parent = textwrap.dedent(
        f"""
        import threading
        from flwr.app import Context, RecordDict
        from fedddpm_app.client.process import ClientProcess
        from tests.client.faulty import message_of
        context = Context(7, 1000, {{}}, RecordDict(), {{}})
        processes = {{fault: ClientProcess("{FAULTY}") for fault in ("", "hang", "hold")}}
        for fault, process in processes.items():
            print(process.answer(message_of(""), context).content["metrics"]["pid"], flush=True)
            threading.Thread(target=process.answer, args=(message_of(fault), context), daemon=True).start()
        input()
        """
    )
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        pids = [int(running.stdout.readline()) for _ in range(3)]
        time.sleep(0.1)
        assert all(psutil.pid_exists(pid) for pid in pids)
        running.send_signal(signal.SIGKILL)
        assert all(gone(pid) for pid in pids)


def test_outside_an_actor_the_app_answers_in_this_process(context):
    app = ForwardingClientApp(FAULTY)
    assert app(message_of(""), context).content["metrics"]["pid"] == os.getpid()
    with pytest.raises(TypeError, match=r"returned NoneType, not a Message"):
        app(message_of("none"), context)
    with pytest.raises(TypeError, match=r'register functions .* "tests.client.faulty:create" creates'):
        app.train()


def test_what_an_actor_imports_is_small():
    """Each actor has these modules in addition to those of its process."""
    code = (
        "import sys, fedddpm_app.client.forwarding; print(len({'torch', 'diffusers', 'datasets'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_every_fault_is_used():
    assert set(FAULTS) == set(DEATHS) | set(RAISED) - {"none"} | {"print", "start"}
