"""Runs the apps in a forked process, which SIGKILL ends at a chosen point."""

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

import client_app
import server_app
from fedddpm_app.inprocess.grid import run_inprocess

FILE_EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree")


def run_in_child(run_config, *, after_events=None, after_seconds=None, log=None):
    """Run the apps in a child; kill it after a number of file operations in the run's folder, or after a time.

    Returns the signal that ended it (0 for none), its seconds, and its number of file operations (-1 if killed).
    """
    reader, writer = os.pipe()
    began = time.perf_counter()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _work(run_config, writer, after_events, after_seconds, log)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        counted = pipe.read()
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, time.perf_counter() - began, int(counted or -1)


def _work(run_config, writer, after_events, after_seconds, log):
    """The child: it never returns."""
    code, count = 1, 0
    folder = str(Path(str(run_config["output-dir"])))

    def count_file_operations(event, arguments):
        nonlocal count
        if event in FILE_EVENTS and arguments and str(arguments[0]).startswith(folder):
            count += 1
            if count == after_events:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        output = os.open(str(log or os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.addaudithook(count_file_operations)
        if after_seconds is not None:
            timer = threading.Timer(after_seconds, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        run_inprocess(server_app.app, client_app.app, run_config, int(run_config["num-clients"]))
        code = 0
    except BaseException:  # noqa: BLE001 - the child ends here, whatever happened
        traceback.print_exc()
    finally:
        os.write(writer, str(count).encode())
        os._exit(code)
