import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import client_app
import server_app
from fedddpm_app.config import Config, Scalar, default_run_config, load_config
from fedddpm_app.inprocess.grid import run_inprocess

ROOT = Path(__file__).parent.parent

TINY: dict[str, Scalar] = {
    "num-rounds": 2,
    "unet-channels": "8,16",
    "unet-norm-groups": 4,
    "unet-attention-resolutions": "",
    "diffusion-steps": 50,
    "warmup-steps": 0,
    "pretrain-steps": 3,
    "local-steps": 3,
    "correction-steps": 2,
    "batch-size": 8,
    "correction-batch-size": 8,
    "auxiliary-size": 12,
    "auxiliary-sampler-steps": 2,
    "preview-sampler-steps": 2,
    "preview-images": 10,
    "eval-draws": 1,
    "eval-images": 0,
    "eval-final-images": 0,
    "eval-sampler-steps": 2,
    "eval-final-sampler-steps": 2,
    "node-timeout": 1.0,
}


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Decoded images and evaluation networks, made once for all tests and the processes that they start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "fedddpm"


@pytest.fixture
def run_config(tmp_path: Path, cache_dir: Path) -> dict[str, Scalar]:
    """The app's defaults, made tiny."""
    places = {"output-dir": str(tmp_path), "run-name": "run"}
    places |= {"state-dir": str(tmp_path / "state"), "cache-dir": str(cache_dir)}
    return default_run_config(ROOT) | TINY | places


@pytest.fixture
def config(run_config: dict[str, Scalar]) -> Config:
    return load_config(run_config)


class RunDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.stats = [json.loads(line) for line in (path / "stats.jsonl").read_text().splitlines()]
        self.summary = json.loads((path / "summary.json").read_text())

    def losses(self) -> list[dict[str, object]]:
        """The loss columns of stats.jsonl, a row per line."""
        return [{k: v for k, v in row.items() if "loss" in k} for row in self.stats]

    def phases(self) -> list[object]:
        """What happened, in order, after the data were looked at."""
        return [row["phase"] for row in self.stats if row["phase"] != "data"]

    def rounds(self) -> list[dict[str, object]]:
        return [row for row in self.stats if row["phase"] == "round"]


@pytest.fixture
def run_app(run_config: dict[str, Scalar]) -> Callable[..., RunDirectory]:
    """Run the real ClientApp and ServerApp in this process, with overrides such as ``num_rounds=1``."""
    names = (f"run-{k}" for k in itertools.count())

    def run(**overrides: Scalar) -> RunDirectory:
        resolved = run_config | {"run-name": next(names)} | {k.replace("_", "-"): v for k, v in overrides.items()}
        run_inprocess(server_app.app, client_app.app, resolved, int(resolved["num-clients"]))
        return RunDirectory(Path(str(resolved["output-dir"])) / str(resolved["run-name"]))

    return run
