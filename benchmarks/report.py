"""Helpers of all benchmarks: options, a table on the terminal, and a JSON file with the machine's name."""

import json
import platform
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedddpm_app.device import describe_machine

_PACKAGES = ("torch", "flwr", "ray", "diffusers")


class Report:
    """The results of one benchmark.

    Parameters
    ----------
    name : str
        The name of the script, such as ``transport``.
    title : str
        The title of the table.
    short : bool
        Whether the short form ran; its results are only a rough check and must not be quoted.
    """

    def __init__(self, name: str, title: str, short: bool) -> None:
        self.name = name
        self.title = title
        self.short = short
        self.rows: list[dict[str, object]] = []
        self.ratios: dict[str, float] = {}

    def add(self, **row: object) -> None:
        """Add a row to the table; its keys are the columns, with their units."""
        self.rows.append(row)

    def ratio(self, what: str, value: float) -> None:
        """Add a ratio of two results of this run, for a claim."""
        self.ratios[what] = value

    def to_dict(self) -> dict[str, object]:
        """Return all results, with the machine and the command."""
        return {
            "benchmark": self.name,
            "title": self.title,
            "short": self.short,
            "command": " ".join([f"python -m benchmarks.{self.name}", *(["--short"] if self.short else [])]),
            "machine": machine(),
            "rows": self.rows,
            "ratios": self.ratios,
        }

    def show(self) -> None:
        """Print the table and the ratios."""
        console = Console(width=None if sys.stdout.isatty() else 160)
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        table = Table(*columns, title=self.title)
        for row in self.rows:
            table.add_row(*(_text(row.get(column, "")) for column in columns))
        console.print(table)
        for what, value in self.ratios.items():
            console.print(f"{what}: {_text(value)}")


def machine() -> dict[str, object]:
    """Describe the machine and the package versions of the measurement."""
    versions = {package: _version(package) for package in _PACKAGES}
    return {**describe_machine(), "python": platform.python_version(), **versions}


def main(measure: Callable[[bool], Report]) -> None:
    """Run a benchmark from the command line; ``measure`` gets whether to run the short form."""

    def command(
        short: Annotated[bool, typer.Option(help="Run a short form, as a check that the benchmark works.")] = False,
        json_path: Annotated[Path | None, typer.Option("--json", help="File to write the results to.")] = None,
    ) -> None:
        report = measure(short)
        report.show()
        path = json_path or Path("benchmark-results") / f"{report.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        typer.echo(f"written: {path}")

    typer.run(command)


def spread(values: Mapping[str, float] | list[float]) -> str:
    """Return the lowest and the highest of repeated results, as a text."""
    numbers = list(values.values()) if isinstance(values, Mapping) else values
    return f"{_text(min(numbers))}-{_text(max(numbers))}"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
