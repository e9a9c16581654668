"""The cost of one client in one round without training: Flower's FedAvg against our transports, in one run.

Claim: a client takes at most 0.12 s, and at most 0.3 of the time with Flower's FedAvg. The server's memory does not
grow with the number of clients; with 24 clients it is at most a quarter of the memory with Flower's FedAvg.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.echo import STOCK, Echo
from benchmarks.report import Report, main

WAYS = [
    (STOCK, "fp32"),
    ("arrays", "fp32"),
    ("flat", "fp32"),
    ("flat", "bf16"),
    ("flat", "int8-delta"),
    ("shared-memory", "fp32"),
    ("shared-memory", "bf16"),
]


def measure(short: bool) -> Report:
    """Run every transport with 8 and 24 clients on 2 actors; in the short form two transports with 2 and 4 clients."""
    report = Report(
        "transport", "Echo clients, 35.75 M parameters, no training: seconds per client, driver memory", short
    )
    ways = [way for way in WAYS if not short or way in (WAYS[0], ("shared-memory", "fp32"))]
    few, many = (2, 4) if short else (8, 24)
    found: dict[tuple[str, str, int], dict[str, Any]] = {}
    for clients in (few, many):
        for kind, dtype in ways:
            results = found[kind, dtype, clients] = run_echo(kind, dtype, clients, rounds=3 if short else 5)
            report.add(
                transport=kind,
                wire_dtype=dtype,
                clients=clients,
                s_per_client=results["s_per_client"],
                above_idle_mb=results["above_idle_mb"],
                idle_mb=results["idle_mb"],
                moved_mb=results["moved_mb"],
            )
    ours = "shared-memory", "fp32"
    for clients in (few, many):
        stock, mine = found[STOCK, "fp32", clients], found[*ours, clients]
        report.ratio(
            f"s per client, shared-memory / stock, {clients} clients", mine["s_per_client"] / stock["s_per_client"]
        )
    for kind, dtype in ways[1:]:
        growth = found[kind, dtype, many]["above_idle_mb"] / found[kind, dtype, few]["above_idle_mb"]
        report.ratio(f"memory above idle, {kind} {dtype}, {many} / {few} clients", growth)
    memory = found[*ours, many]["above_idle_mb"] / found[STOCK, "fp32", many]["above_idle_mb"]
    report.ratio(f"memory above idle, shared-memory / stock, {many} clients", memory)
    return report


def run_echo(kind: str, wire_dtype: str, clients: int, rounds: int, **more: Any) -> dict[str, Any]:
    """Run one federation in a separate process; the first round is a warm-up and does not count."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "results.json"
        echo = Echo(kind, clients, rounds, str(result), folder, wire_dtype, **more)
        command = [sys.executable, "-c", "from benchmarks.echo import run_simulated; run_simulated()"]
        done = subprocess.run(
            command, env=os.environ | echo.to_environment(), capture_output=True, text=True, timeout=900, check=False
        )
        if not result.exists():
            raise RuntimeError(f"{kind} with {clients} clients failed: {done.stdout[-2000:]}{done.stderr[-3000:]}")
        results = json.loads(result.read_text(encoding="utf-8"))
    sampled = echo.clients_per_round or clients
    results["s_per_client"] = median(results["round_s"][1:]) / sampled
    results["above_idle_mb"] = results["peak_mb"] - results["idle_mb"]
    return results


if __name__ == "__main__":
    main(measure)
