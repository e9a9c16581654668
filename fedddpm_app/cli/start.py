"""Start of `fedddpm run`: a bad config is refused here, before anything that takes seconds is imported."""

import shlex
from pathlib import Path

from fedddpm_app.cli.common import FEDERATION_CONFIG, RUN_CONFIG, find_app, read_config, refuse
from fedddpm_app.cli.options import Engine
from fedddpm_app.config import Config, ConfigError, Scalar, default_run_config, read_overrides
from fedddpm_app.launch.flower_run import to_toml
from fedddpm_app.recording.layout import CLIENT_STATE
from fedddpm_app.recording.reading import run_config_of


def start(
    run_config: list[str] | None,
    engine: Engine,
    federation_config: str,
    app_dir: Path | None,
    superlink: str,
    resume: str,
    resume_previous: bool,
) -> None:
    """Read the config, and run; ``commands.run`` describes the arguments."""
    folder = find_app(app_dir, resume)
    try:
        federation = read_overrides(FEDERATION_CONFIG, [federation_config], {})
        base = resumed_config(resume, resume_previous, on_this_host=not superlink)
        config, overrides = read_config(
            folder, run_config, federation.problems, on_other_hosts=bool(superlink), base=base
        )

        from fedddpm_app.cli.run import execute

        execute(folder, config, overrides, federation.values, engine, superlink)
    except ConfigError as error:
        refuse(str(error))


def how_to_resume(directory: Path, folder: Path, config: Config, engine: Engine, federation: dict[str, Scalar]) -> str:
    """Return the command that continues a run of this host, typed in the current folder.

    Parameters
    ----------
    directory : Path
        The run directory.
    folder : Path
        The app's folder.
    config : Config
        The run's config.
    engine : Engine
        The engine of the run.
    federation : dict
        The keys of ``--federation-config``.
    """
    parts = ["fedddpm", "run", "--resume", str(directory)]
    if find_app(None, directory) != folder:
        parts += ["--app", str(folder)]
    if engine is not Engine.simulation:
        parts += ["--engine", engine.value]
    algorithm = config.run.algorithm
    if ":" in algorithm and default_run_config(folder)["algorithm"] != algorithm:
        parts += [RUN_CONFIG, to_toml({"algorithm": algorithm})]
    if federation:
        parts += [FEDERATION_CONFIG, to_toml(federation).replace("\n", " ")]
    return shlex.join(parts)


def resumed_config(resume: str, previous: bool, *, on_this_host: bool) -> dict[str, Scalar]:
    """Return the keys of the run to continue; empty for a new run. Those of a run on another host are not known."""
    if not resume:
        if previous:
            raise ConfigError("--resume-previous needs --resume RUN: give the folder of the run.")
        return {}
    if not on_this_host:
        return {"resume": resume, "resume-previous": previous}
    directory = Path(resume).expanduser().resolve()
    config = run_config_of(directory, f"--resume = {resume}")
    before = Path(str(config.get("output-dir"))) / str(config.get("run-name"))  # it may have been moved since
    places: dict[str, Scalar] = {"output-dir": str(directory.parent), "run-name": directory.name}
    if config.get("state-dir") == str(before / CLIENT_STATE):
        places["state-dir"] = str(directory / CLIENT_STATE)
    return {**config, **places, "resume": str(directory), "resume-previous": previous}
