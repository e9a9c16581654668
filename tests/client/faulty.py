"""A ClientApp whose faults the tests choose, message by message, and that imports no torch."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedddpm_app.federation.flower_internals import TaskIdentity
from fedddpm_app.federation.messages.deadlines import time_to_live


class UnpicklableError(RuntimeError):
    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


def hold_the_interpreter():
    ctypes.PyDLL(None).sleep(1000)  # keeps the GIL, so that no other thread of the process runs


def allocate():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    return bytearray(1 << 31)


def diverge():
    raise RuntimeError("its training diverged")


def break_gpu():
    try:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    except RuntimeError as error:
        raise RuntimeError("the step failed") from error


def raise_unpicklable():
    raise UnpicklableError("it holds a lock")


def start_process():
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]).pid


FAULTS = {
    "exit": lambda: sys.exit(3),
    "exit at once": lambda: os._exit(0),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
    "hang": lambda: time.sleep(1000),
    "hold": hold_the_interpreter,
    "allocate": allocate,
    "diverge": diverge,
    "gpu": break_gpu,
    "unpicklable": raise_unpicklable,
    "print": lambda: sys.stdout.write("a line of the client\n"),
    "start": start_process,
}


def message_of(fault, timeout=100.0, queue=0):
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    content = RecordDict({"config": ConfigRecord({"fault": fault})})
    return Message(content, dst_node_id=1000, message_type="train", ttl=time_to_live(timeout, queue))


def create():
    app = ClientApp()

    @app.train()
    def train(message, context):
        fault = str(message.content["config"]["fault"])
        if fault == "none":
            return None
        value = FAULTS[fault]() if fault else None
        count = int(context.state.config_records.get("seen", ConfigRecord({"count": 0}))["count"]) + 1
        context.state["seen"] = ConfigRecord({"count": count})
        metrics = {"pid": os.getpid(), "count": count, "value": value or 0}
        metrics |= {
            "node": TaskIdentity.node_id,
            "run": TaskIdentity.run_id,
            "torch": int("torch" in sys.modules),
        }
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return app


def broken():
    raise ImportError("no such package")


def needy():
    with Path(os.environ["NEEDED"]).open():
        return create()


def slow():
    time.sleep(1.0)
    return create()
