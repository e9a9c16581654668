import json
from pathlib import Path

from typer.testing import CliRunner

from fedddpm_app.cli import app
from fedddpm_app.launch.flower_run import to_toml
from tests.conftest import ROOT, TINY

GRIDS = sorted((ROOT / "conf" / "compare").glob("*.toml"))
GRID = """
name = "tiny"
reference = "{reference}"
seeds = [0, 1]
match = "rounds"
metrics = ["fd-pixels-pca", "memorized-share"]
trade_off = ["memorized-share"]

[base]
{base}

[conditions.iid]
partition = "iid"

{rows}
"""
ROWS = """
[rows.fedavg]

[rows.fragile]
algorithm = "tests.compare.fragile:Fragile"
algorithm-options = "flag={flag}"
"""


class Grid:
    """A tiny grid in a folder, with the real command in this process."""

    def __init__(self, folder: Path, out: str = "out", rows: str = ROWS) -> None:
        self.folder = folder
        self.out = folder / out
        self.file = folder / f"{out}.toml"
        self.flag = folder / "flag"
        base = TINY | {"num-clients": 2, "eval-final-images": 20, "eval-extractor": "pixels-pca", "preview-every": 0}
        rows = rows.format(flag=self.flag)
        reference = rows.partition("[rows.")[2].partition("]")[0]
        self.file.write_text(GRID.format(reference=reference, base=to_toml(base), rows=rows))

    def call(self, *arguments: str):
        return CliRunner().invoke(
            app, ["compare", str(self.file), "--app", str(ROOT), "--out", str(self.out), "--jobs", "2", *arguments]
        )

    def results(self):
        return json.loads((self.out / "results.json").read_text())

    def cells(self) -> dict[str, Path]:
        """The summaries of the cells, by row and seed."""
        return {f"{path.parts[-4]} {path.parts[-2]}": path for path in sorted(self.out.rglob("seed-?/summary.json"))}

    def files(self) -> dict[str, tuple[int, int]]:
        """The time of the last change, and the inode, of the cells' summaries."""
        return {name: (path.stat().st_mtime_ns, path.stat().st_ino) for name, path in self.cells().items()}
