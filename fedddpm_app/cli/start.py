"""Start of `fedddpm run`: a bad config is refused here, before anything that takes seconds is imported."""

from pathlib import Path

from fedddpm_app.cli.common import FEDERATION_CONFIG, find_app, read_config, refuse
from fedddpm_app.cli.options import Engine
from fedddpm_app.config import ConfigError, Scalar, read_overrides
from fedddpm_app.recording.directory import CLIENT_STATE
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
