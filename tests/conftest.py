import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from filelock import FileLock

import client_app
import server_app
from fedddpm_app.config import Config, Scalar, default_run_config, load_config
from fedddpm_app.inprocess.grid import run_inprocess
from fedddpm_app.recording.pictures import RunPictures

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
    "max-round-retries": 0,
    "tracker": "none",
}


def pytest_configure() -> None:
    """Give every test process one CPU thread, as a run does: two that have two each wait for each other on two cores.

    Not by a variable, which the processes that a test starts would take over: these set their threads themselves.
    """
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all its processes share, where tests are spread over several."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def cache_dir(session_folder: Path) -> Iterator[Path]:
    """Decoded images and evaluation networks, made once for all tests and the processes that they start."""
    folder = session_folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "fedddpm"


@pytest.fixture(autouse=True)
def fewer_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process leave out the plots that take a quarter of a tiny run, except with the marker ``plots``."""
    if request.node.get_closest_marker("plots") is None:
        for name in ("save_partition", "save_curves"):
            monkeypatch.setattr(RunPictures, name, lambda *_: None)


def tiny(folder: Path, cache_dir: Path) -> dict[str, Scalar]:
    """The app's defaults, made tiny, for runs below ``folder``."""
    places = {"output-dir": str(folder), "run-name": "run"}
    places |= {"state-dir": str(folder / "state"), "cache-dir": str(cache_dir)}
    return default_run_config(ROOT) | TINY | places


@pytest.fixture
def run_config(tmp_path: Path, cache_dir: Path) -> dict[str, Scalar]:
    """The app's defaults, made tiny."""
    return tiny(tmp_path, cache_dir)


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


def run_of(run_config: dict[str, Scalar], overrides: dict[str, Scalar]) -> RunDirectory:
    """Run the real ClientApp and ServerApp in this process, with overrides such as ``num_rounds=1``."""
    resolved = run_config | {key.replace("_", "-"): value for key, value in overrides.items()}
    run_inprocess(server_app.app, client_app.app, resolved, int(resolved["num-clients"]))
    return RunDirectory(Path(str(resolved["output-dir"])) / str(resolved["run-name"]))


@pytest.fixture
def run_app(run_config: dict[str, Scalar]) -> Callable[..., RunDirectory]:
    """Run the apps in this process: see ``run_of``."""
    names = (f"run-{k}" for k in itertools.count())
    return lambda **overrides: run_of(run_config | {"run-name": next(names)}, overrides)


@pytest.fixture(scope="session")
def shared_run(session_folder: Path, cache_dir: Path) -> Callable[..., RunDirectory]:
    """``run_app`` for tests that only read the run's directory: the same overrides are run once in a session.

    Nothing of the app may be patched when it is called, except what ``fewer_plots`` does. The clients' ``state`` is
    beside the run's directory.
    """
    defaults = tiny(session_folder, cache_dir)

    def run(**overrides: Scalar) -> RunDirectory:
        changes = {key.replace("_", "-"): value for key, value in overrides.items()}
        changes = {key: value for key, value in sorted(changes.items()) if defaults.get(key) != value}
        name = hashlib.sha256(json.dumps(changes).encode()).hexdigest()[:16]
        folder = session_folder / "shared-runs" / name
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / "complete").exists():
                shutil.rmtree(folder / "run", ignore_errors=True)  # of a test that failed
                run_of(tiny(folder, cache_dir), overrides)
                (folder / "complete").touch()
        return RunDirectory(folder / "run")

    return run
