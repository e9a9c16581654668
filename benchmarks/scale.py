"""Many clients: memory and time of simulations of 10, 100 and 1,000 clients.

Each round samples a tenth of the clients (at least 10). Claim: the driver's peak memory with 1,000 clients is at most
1.3 times its peak memory with 10 clients.
"""

from statistics import median
from typing import Any

from benchmarks.models import LARGE, MIDDLE
from benchmarks.report import Report, main
from benchmarks.transport import run_echo


def measure(short: bool) -> Report:
    """Run 10, 100 and 1,000 echo clients (in the short form 10 and 50), so that only the federation is measured."""
    report = Report("scale", "Echo clients, a tenth (at least 10) per round: driver memory, seconds", short)
    sizes = (10, 50) if short else (10, 100, 1000)
    for model in (MIDDLE,) if short else (MIDDLE, LARGE):
        peaks: dict[int, float] = {}
        for clients in sizes:
            sampled = max(10, clients // 10)
            results: dict[str, Any] = run_echo("auto", "fp32", clients, 3, clients_per_round=sampled, model=model)
            peaks[clients] = results["peak_mb"]
            report.add(
                model=model,
                clients=clients,
                asked=sampled,
                driver_peak_mb=results["peak_mb"],
                driver_idle_mb=results["idle_mb"],
                s_per_round=median(results["round_s"][1:]),
                s_per_client=results["s_per_client"],
                s_to_find_clients=results["found_s"],
            )
        report.ratio(f"driver peak, {model}, {sizes[-1]} / {sizes[0]} clients", peaks[sizes[-1]] / peaks[sizes[0]])
    return report


if __name__ == "__main__":
    main(measure)
