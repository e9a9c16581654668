"""The cost of a round in a deployment without training: a SuperLink on SQLite and two SuperNodes on loopback.

Claim: with one flat blob, a round takes at most 0.3 of the time of Flower's FedAvg, which sends 328 arrays.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.echo import STOCK, Echo
from benchmarks.report import Report, main, spread
from fedddpm_app.launch.flower_run import COMPLETED, FLOWER_ENVIRONMENT, write_app
from fedddpm_app.launch.simulation import free_port

ROOT = Path(__file__).resolve().parent.parent
NODES = 2
_APP = """
from benchmarks.echo import client_app, server_app

server = server_app
client = client_app()
"""


def measure(short: bool) -> Report:
    """Run Flower's FedAvg and ours; the short form runs one round of each with one dtype."""
    title = f"Echo clients, 35.75 M parameters, SuperLink on SQLite, {NODES} SuperNodes: seconds per round"
    report = Report("deployment", title, short)
    ways = [(STOCK, "fp32"), ("flat", "fp32")] + ([] if short else [("flat", "bf16"), ("flat", "int8-delta")])
    seconds: dict[tuple[str, str], float] = {}
    for kind, dtype in ways:
        results = run_deployed(kind, dtype, rounds=1 if short else 3)
        seconds[kind, dtype] = median(results["round_s"])
        report.add(transport=kind, wire_dtype=dtype, s_per_round=seconds[kind, dtype], range=spread(results["round_s"]))
    for kind, dtype in ways[1:]:
        report.ratio(f"s per round, {kind} {dtype} / stock", seconds[kind, dtype] / seconds[STOCK, "fp32"])
    return report


def run_deployed(kind: str, wire_dtype: str, rounds: int) -> dict[str, Any]:
    """Run one federation on a new SuperLink and new SuperNodes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = folder / "results.json"
        echo = Echo(kind, NODES, rounds, str(result), name, wire_dtype)
        port = free_port()
        environment = _environment(folder, port) | echo.to_environment()
        (folder / "app").mkdir()
        write_app(folder / "app", "echo_app", _APP, "server", "client")
        with _processes(folder, port, environment):
            status = _run_app(folder, environment)
        if not result.exists() or status != COMPLETED:
            logs = "\n".join(log.read_text(encoding="utf-8", errors="replace")[-1500:] for log in folder.glob("*.log"))
            raise RuntimeError(f"{kind} {wire_dtype} ended as {status}: {logs}")
        results: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return results


def _environment(folder: Path, port: int) -> dict[str, str]:
    """Return the environment of all processes, with a Flower home that contains the SuperLink's connection."""
    home = folder / "flwr"
    home.mkdir()
    connection = f'[superlink.benchmark]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    (home / "config.toml").write_text(connection, encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return os.environ | FLOWER_ENVIRONMENT | {"FLWR_HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT)}


@contextmanager
def _processes(folder: Path, port: int, environment: dict[str, str]) -> Iterator[None]:
    """Run the SuperLink and the SuperNodes in the body."""
    link = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(port), "--database"]
    commands = [[*link, str(folder / "state.db")]]
    node = ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--port"]
    for partition in range(NODES):
        node_config = f"partition-id={partition} num-partitions={NODES}"
        commands.append([*node, str(free_port()), "--node-config", node_config])
    with ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"{number}-{command[0]}.log").open("w"))
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
            stack.callback(_stop, process)
            time.sleep(3.0)
        yield


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and its children."""
    found = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in found:
        with suppress(psutil.NoSuchProcess):
            each.terminate()
    for each in psutil.wait_procs(found, timeout=10)[1]:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def _run_app(folder: Path, environment: dict[str, str]) -> str:
    """Start the app and wait for its end; return the status that Flower reports."""
    options: dict[str, Any] = {"env": environment, "cwd": folder, "capture_output": True, "text": True}
    run = subprocess.run(["flwr", "run", "app", "benchmark", "--stream"], check=False, timeout=900, **options)
    (folder / "run.log").write_text(run.stdout + run.stderr, encoding="utf-8")
    answer = subprocess.run(["flwr", "ls", "benchmark", "--format", "json"], check=False, timeout=60, **options)
    try:
        return str(json.loads(answer.stdout)["runs"][0]["status"])
    except (ValueError, LookupError):
        return f"unknown: {answer.stdout}{answer.stderr}"


if __name__ == "__main__":
    main(measure)
