"""Start of `fedddpm run`: a bad config is refused here, before anything that takes seconds is imported."""

from pathlib import Path

from fedddpm_app.cli.common import FEDERATION_CONFIG, find_app, read_config, refuse
from fedddpm_app.cli.options import Engine
from fedddpm_app.config import ConfigError, read_overrides


def start(
    run_config: list[str] | None, engine: Engine, federation_config: str, app_dir: Path | None, superlink: str
) -> None:
    """Read the config, and run; ``commands.run`` describes the arguments."""
    folder = find_app(app_dir)
    try:
        federation = read_overrides(FEDERATION_CONFIG, [federation_config], {})
        config, overrides = read_config(folder, run_config, federation.problems, on_other_hosts=bool(superlink))

        from fedddpm_app.cli.run import execute

        execute(folder, config, overrides, federation.values, engine, superlink)
    except ConfigError as error:
        refuse(str(error))
