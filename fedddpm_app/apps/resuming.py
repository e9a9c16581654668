"""The run directory of a ServerApp: a new one, or that of a run that is resumed from a checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.client.state import default_folder
from fedddpm_app.config import Config, ConfigError, Scalar
from fedddpm_app.config.purposes import CHECKING, KEEPING, MEASURING, PLACES, RESUMING, SHOWING, WAITING
from fedddpm_app.data.dataset import PARTITION
from fedddpm_app.data.store import cache_folder
from fedddpm_app.federation.flower_internals import Run
from fedddpm_app.progress import logger, note
from fedddpm_app.recording.checkpoints import Checkpoint, rounds_of
from fedddpm_app.recording.directory import check_has_no_links, run_directory
from fedddpm_app.recording.layout import CLIENT_STATE, CONFIG
from fedddpm_app.recording.reading import changed_data, first_run_of, run_config_of
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.recording.resumable import find_checkpoint
from fedddpm_app.recording.status import COMPLETED, RUNNING, is_locked, read_status
from fedddpm_app.tracking import start_tracking

# Keys that change neither the weights nor the losses of the rounds that are done.
MAY_CHANGE = (
    *("num-rounds", *RESUMING, *PLACES, "transport"),
    *(*WAITING, *KEEPING, *SHOWING, *MEASURING, *CHECKING),
)
_MEASURING = ("eval-", "inception-weights", "memorization-")  # their values must be the same along a curve
_NOT_MEASURING = ("eval-every", "eval-batch-size", "eval-final-")


def open_run(
    config: Config, run_config: Mapping[str, Scalar], base: Path, run: Run, data: Mapping[str, str]
) -> tuple[RunRecorder, Checkpoint | None]:
    """Return the recorder of a run, and, of a resumed run, the checkpoint to continue from.

    Parameters
    ----------
    config : Config
        The run's config; ``run_config`` is the same with all keys.
    base : Path
        The folder that a relative ``output-dir`` or ``resume`` is relative to.
    run : Run
        Flower's description of the run.
    data : mapping of str to str
        The digests of this host's data, see ``FederatedDataset.digests``.

    Returns
    -------
    recorder : RunRecorder
        Its folder is new, or that of the resumed run.
    checkpoint : Checkpoint or None
        None for a new run, and for a run that ended before its first checkpoint: it starts again, and reuses finished
        pieces of work.

    Raises
    ------
    ConfigError
        When the folder cannot be used; the message gives the fix.
    """
    if not config.run.resume:
        recorder = RunRecorder(run_directory(config, base), cache_folder(config.data))
        recorder.write_config(run_config, run, data)
        recorder.attach(start_tracking(config, run_config, recorder.directory, recorder.stats))
        return recorder, None
    directory = (base / Path(config.run.resume).expanduser()).resolve()
    checkpoint = find_resumable(directory, config, run_config)
    measured = check_data(directory, data)
    recorder = RunRecorder.resume(directory, checkpoint, cache_folder(config.data))
    with recorder:
        done = checkpoint.server_round if checkpoint else None
        changed = recorder.add_to_config(run_config, run, done, data)
        recorder.attach(start_tracking(config, run_config, directory, recorder.stats))
    measured += [key for key in changed if key.startswith(_MEASURING) and not key.startswith(_NOT_MEASURING)]
    if measured:
        text = "the metrics of the new rounds are measured with another %s: they do not continue the same curves"
        logger.warning(text, ", ".join(measured))
    note(f"resumed after round {checkpoint.server_round}" if checkpoint else "resumed from the start: no checkpoint")
    return recorder, checkpoint


def find_resumable(directory: Path, config: Config, run_config: Mapping[str, Scalar]) -> Checkpoint | None:
    """Return the checkpoint to continue from; None if the run starts again.

    Raises
    ------
    ConfigError
        If the folder is not that of a run with the same config that is still to be finished.
    """
    check_has_no_links(directory)
    saved = run_config_of(directory, f'resume = "{config.run.resume}"')
    first_run_of(directory)  # which is needed as well
    algorithm = get_algorithm(config)
    checks = config.checks_memorization and "memorization-check" not in algorithm.keys_without_effect(config)
    fixed = [*algorithm.fixed_on_resume, *(CHECKING if checks else ())]
    _check_equal(directory, saved, run_config, fixed)
    status = read_status(directory)
    if status.state == RUNNING and is_locked(directory):  # of a host that is gone, such as a container, it is free
        raise ConfigError(
            f"resume: {directory} is still running, by {status.owner}; stop it first. If that host is "
            f'gone, and the folder has no locks, set the status in its summary.json to "failed".'
        )
    if (keeper := _keeper_of_states(config)) or config.dp.is_on:
        _check_state_folder(directory, saved, run_config)
    checkpoint = find_checkpoint(directory, previous=config.run.resume_previous)
    if checkpoint is None:
        return None
    _check_equal(directory, checkpoint.run["run_config"], run_config, fixed)  # config.json may have been edited since
    done, wanted = checkpoint.server_round, config.run.num_rounds
    if done > wanted:
        raise ConfigError(
            f"num-rounds = {wanted}, but {directory} has {done} rounds: use at least {done}, or resume-previous = true."
        )
    if status.state == COMPLETED and done == wanted:
        raise ConfigError(f"resume: {directory} is complete, with {done} rounds; give a num-rounds above {done}.")
    if keeper:
        all_done = rounds_of(directory)[-1] == saved.get("num-rounds")
        if all_done and wanted > done:
            raise ConfigError(
                f"resume: {directory} has all its {saved.get('num-rounds')} rounds, after which its clients remove the "
                f"state that {keeper} keeps between rounds; start a new run with more rounds."
            )
    return checkpoint


def check_data(directory: Path, data: Mapping[str, str]) -> list[str]:
    """Compare the data with those that a run began with.

    Parameters
    ----------
    directory : Path
        The run directory.
    data : mapping of str to str
        The digests of this host's data, see ``FederatedDataset.digests``.

    Returns
    -------
    list of str
        A text if the test images are others, which changes metrics alone.

    Raises
    ------
    ConfigError
        If clients would train on other images.
    """
    changed = changed_data(directory, data)
    if {"train", PARTITION} & {*changed}:
        which = "training images, or their labels," if "train" in changed else "clients' parts of the training images"
        raise ConfigError(
            f"resume: the {which} are not those that {directory} began with (its {CONFIG} has their SHA-256): restore "
            "the data set and the versions of the packages that read it, or start a new run."
        )
    return ["set of test images"] if changed else []


def _keeper_of_states(config: Config) -> str:
    """Return the setting that has clients keep a state between rounds; empty if there is none."""
    if get_algorithm(config).keeps_state(config):
        return f'algorithm = "{config.run.algorithm}"'
    return f'wire-dtype = "{config.transport.wire_dtype}"' if config.transport.keeps_residuals else ""


def _check_state_folder(directory: Path, saved: Mapping[str, Any], run_config: Mapping[str, Scalar]) -> None:
    """Raise ``ConfigError`` if the clients would look for their states in another folder than before."""
    before, now = (str(values.get("state-dir", "")) for values in (saved, run_config))
    moved_along = Path(before).name == CLIENT_STATE and now == str(directory / CLIENT_STATE)
    in_flower_home = not before and Path(now).name == default_folder().name  # `fedddpm run` names that of the user
    if now != before and not moved_along and not in_flower_home:
        raise ConfigError(
            f'resume: state-dir was "{before}" and is "{now}": the clients of {directory} have their states in the '
            f'first folder; use state-dir = "{before}".'
        )


def _check_equal(
    directory: Path, saved: Mapping[str, Any], run_config: Mapping[str, Scalar], fixed: Sequence[str]
) -> None:
    """Raise ``ConfigError`` if keys differ that may not change; the algorithm adds the ``fixed`` ones."""
    different = [
        f"{key} was {saved[key]!r} and is {run_config[key]!r}"
        if key in saved and key in run_config
        else f"{key} is a key of {'this' if key in run_config else 'that'} version only"
        for key in sorted(saved.keys() | run_config.keys())
        if saved.get(key) != run_config.get(key) and (key in fixed or not key.startswith(MAY_CHANGE))
    ]
    if different:
        may_change = ", ".join(f"{key}*" if key.endswith("-") else key for key in MAY_CHANGE if key not in fixed)
        may_change += "".join(f", except {key}" for key in fixed if key not in MAY_CHANGE)
        raise ConfigError(
            f"resume: {directory} was made with another config: {'; '.join(different)}. Use the same values, or start "
            "a new run; a run of another version continues with that version, which its config.json names. Only these "
            f"keys may change: {may_change}."
        )
