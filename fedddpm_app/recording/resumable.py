"""The checkpoint that a run can be resumed from."""

from pathlib import Path

from fedddpm_app import limits
from fedddpm_app.config import ConfigError
from fedddpm_app.progress import logger
from fedddpm_app.recording.checkpoints import Checkpoint, CheckpointError, load_checkpoint, rounds_of
from fedddpm_app.recording.layout import STATS
from fedddpm_app.recording.reading import read_rows, row_of


def find_checkpoint(directory: Path, *, previous: bool) -> Checkpoint | None:
    """Return the newest checkpoint, or with ``previous`` the newest good one before it; None if there is none.

    Raises
    ------
    ConfigError
        When the newest one is damaged, no earlier one is good, or a run without checkpoints has rounds.
    """
    rounds = rounds_of(directory)
    if not rounds:
        if previous:
            raise ConfigError(f"resume-previous = true: {directory} has no checkpoint; leave it out.")
        _check_nothing_is_lost(directory)
        return None
    if not previous:
        try:
            return load_checkpoint(directory, rounds[-1])
        except CheckpointError as error:
            earlier = next((r for r in reversed(rounds[:-1]) if _is_good(directory, r)), None)
            fix = (
                f"resume from round {earlier} by resume-previous = true (`fedddpm run --resume-previous`)"
                if earlier is not None
                else "no earlier checkpoint is good: restore the file from a backup, or start a new run"
            )
            raise ConfigError(f"resume: {error}; {fix}.") from error
    for server_round in reversed(rounds[:-1]):
        try:
            return load_checkpoint(directory, server_round)
        except CheckpointError as error:
            logger.warning("%s", error)
    raise ConfigError(
        f"resume-previous = true: {directory} has no good checkpoint before round {rounds[-1]}; leave it out."
    )


def _check_nothing_is_lost(directory: Path) -> None:
    """Raise ``ConfigError`` if a run without a checkpoint has rounds, which a new start would remove."""
    stats = directory / STATS
    is_read = not stats.exists() or stats.stat().st_size <= limits.LINES_BYTES
    if not is_read or row_of(read_rows(stats), "round"):
        raise ConfigError(
            f"resume: {directory} has rounds in {STATS}, but no checkpoint to continue from: restore its checkpoints, "
            f"start a new run, or remove {STATS} to start this one again with its finished pretraining."
        )


def _is_good(directory: Path, server_round: int) -> bool:
    try:
        load_checkpoint(directory, server_round)
    except CheckpointError:
        return False
    return True
