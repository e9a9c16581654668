"""The run directory of a command that starts a run."""

from pathlib import Path

from fedddpm_app.apps.resuming import check_data, find_resumable
from fedddpm_app.config import Config, Scalar
from fedddpm_app.data.dataset import open_dataset
from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.recording.directory import run_directory
from fedddpm_app.recording.log import RunLog


def claim_directory(config: Config, overrides: dict[str, Scalar]) -> tuple[Path, RunLog]:
    """Create the run's folder and log, and return both; first refuse overrides that `flwr run` cannot take."""
    to_toml({**overrides, "output-dir": str(Path.cwd() / config.run.output_dir)})
    directory = run_directory(config, Path.cwd())
    return directory, RunLog(directory)


def continue_directory(config: Config, overrides: dict[str, Scalar]) -> tuple[Path, RunLog]:
    """Return the folder of the run to resume, and its log; first refuse a run that cannot be resumed, or other data."""
    directory = Path(config.run.resume)
    find_resumable(directory, config, overrides)
    check_data(directory, open_dataset(config.data, config.run.seed).digests)
    return directory, RunLog(directory, resumed=True)
