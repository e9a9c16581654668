import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.launch.flower_run import to_toml
from tests.conftest import ROOT, TINY

GRID = """
name = "tiny"
reference = "fedavg"
seeds = [0, 1]
match = "rounds"
metrics = ["fd-pixels-pca"]

[base]
{base}

[conditions.iid]
partition = "iid"

[rows.fedavg]

[rows.fragile]
algorithm = "tests.compare.fragile:Fragile"
algorithm-options = "flag={flag}"
"""


class Grid:
    """A tiny grid in a folder, with the real command in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.file = folder / "grid.toml"
        self.flag = folder / "flag"
        base = TINY | {"num-clients": 2, "eval-final-images": 20, "eval-extractor": "pixels-pca", "preview-every": 0}
        self.file.write_text(GRID.format(base=to_toml(base), flag=self.flag))

    def call(self, *arguments: str):
        return CliRunner().invoke(
            app, ["compare", str(self.file), "--app", str(ROOT), "--out", str(self.out), "--jobs", "2", *arguments]
        )

    def results(self):
        return json.loads((self.out / "results.json").read_text())

    def cells(self) -> dict[str, Path]:
        """The summaries of the cells, by row and seed."""
        return {f"{path.parts[-4]} {path.parts[-2]}": path for path in sorted(self.out.rglob("summary.json"))}


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return Grid(tmp_path_factory.mktemp("grid"))
