"""A run and a comparison to report about, with texts that try to leave their place in the page."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fedddpm_app.report import saving
from tests.conftest import ROOT, RunDirectory

ATTACK = '</script><script>alert(1)</script><img src="https://example.org/x.png">'
METRICS = [
    {"name": "fd-classifier", "value": 9.5, "floor": 0.5, "floor_std": 0.6, "n": 20, "better": "lower", "steps": 2},
    {
        "name": "class-tv",
        "value": 0.25,
        "floor": 0.1,
        "n": 20,
        "better": "lower",
        "class_counts": {"generated": [5, 15], "real": [10, 10]},
    },
]


@pytest.fixture
def without_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages of tests that open no browser leave out the plotting library, which takes seconds to bundle."""
    monkeypatch.setattr(saving, "_library", lambda: "")


@pytest.fixture
def run(shared_run: Callable[..., RunDirectory], tmp_path: Path) -> Path:
    """A copy of a run of FedDDPM+ that corrects, with metrics in its last round and at its end."""
    path = shared_run(algorithm="fedddpm-plus", num_rounds=3, plus_threshold=0.999).path
    copy = shutil.copytree(path, tmp_path / "run")
    lines = (copy / "stats.jsonl").read_text().splitlines()
    for k in (-2, -1):
        lines[k] = json.dumps(json.loads(lines[k]) | {"eval/metrics": METRICS})
    (copy / "stats.jsonl").write_text("\n".join(lines) + "\n")
    change(copy / "summary.json", metrics=METRICS)
    return copy


def change(path: Path, **changes: object) -> None:
    """Change keys of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def append(run: Path, **line: object) -> None:
    """Append a line to ``stats.jsonl``."""
    with (run / "stats.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """The published results of a comparison, with the rounds of one of its cells."""
    folder = tmp_path / "comparison"
    folder.mkdir()
    shutil.copy(ROOT / "results" / "digits.json", folder / "results.json")
    cell = next(c for c in json.loads((folder / "results.json").read_text())["cells"] if c["status"] == "completed")
    directory = folder / cell["row"] / cell["condition"] / f"seed-{cell['seed']}"
    directory.mkdir(parents=True)
    for k in (1, 2):
        append(directory, phase="round", round=k, **{"compute/steps": 10.0, "comm/up_mb": 1.0, "eval/metrics": METRICS})
    (directory / "summary.json").write_text(json.dumps({"status": "completed", "metrics": METRICS}))
    return folder
