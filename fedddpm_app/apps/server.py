"""The ServerApp: config -> data for evaluation -> strategy -> start."""

import functools
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.apps.ending import RunEnding
from fedddpm_app.apps.resuming import open_run
from fedddpm_app.audit.final import attack_run
from fedddpm_app.config import Config, load_config
from fedddpm_app.data.settings import given_keys, misfit, read_auto
from fedddpm_app.data.sites import SITES
from fedddpm_app.device import cpu_threads, resolve_device
from fedddpm_app.disk.code import describe_code
from fedddpm_app.disk.private import private_umask
from fedddpm_app.evaluation.metrics import Metric
from fedddpm_app.experiment.evaluators import create_evaluator
from fedddpm_app.experiment.monitor import Monitor
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.flower_internals import is_deployed
from fedddpm_app.federation.messages.records import to_arrays
from fedddpm_app.federation.security_log import RESUMED, SECURITY_LOG, STARTED, SecurityLog
from fedddpm_app.federation.server_state import MODEL
from fedddpm_app.federation.start_notes import start_notes
from fedddpm_app.progress import configure_logging, logger, name_directory, note
from fedddpm_app.recording.checkpoints import Checkpoint
from fedddpm_app.recording.files import needing_room
from fedddpm_app.recording.provenance import caller_directory
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.tracking import chosen_trackers
from fedddpm_app.weights import snapshot


def diffusion_server_app() -> ServerApp:
    """Return the ServerApp that runs the algorithm of the run config, and writes its run directory."""
    configure_logging()
    app = ServerApp()
    app.main()(run_experiment)
    return app


def run_experiment(grid: Grid, context: Context) -> None:
    """Run the configured algorithm, and write its run directory."""
    try:
        with private_umask():
            _run(grid, context)
    except Exception as error:
        logger.error("the run failed: %s", error)
        raise


def _run(grid: Grid, context: Context) -> None:
    """Check the config and the data, then run in the run directory."""
    run_config = {**context.run_config, **read_auto(context.run_config)}
    config = load_config(run_config)
    algorithm = get_algorithm(config)
    resolve_device(config.run.device)
    chosen_trackers(config)  # which refuses a library that is not installed
    task = DiffusionTask(config)
    test_data = task.data.test
    evaluator = create_evaluator(config) if config.evaluation.measures_images else None
    digests = _digests(config, grid, task)
    recorder, checkpoint = open_run(config, run_config, _base_directory(config, grid), grid.run, digests)
    with RunEnding(recorder) as ending:
        name_directory(recorder.directory)
        _log_start(recorder, grid, context, checkpoint)
        if unfit := misfit(config, given_keys(run_config, grid.run.override_config)):
            logger.warning("%s", unfit)
        if test_data is None:
            note(f'dataset = "{config.data.dataset}": there is no test split on this host, so no eval/loss')
        for text in start_notes(algorithm, config, run_config):
            note(text)
        if config.data.partition != SITES and not recorder.stats:  # with sites, each site reports these numbers
            recorder.save_partition(task.data.label_table, task.data.class_names, task.data.num_unassigned)
        strategy = ending.strategy = algorithm(config, recorder, task)
        monitor = Monitor(config, strategy, recorder, task, evaluator)
        initial = snapshot(task.create_model())
        if checkpoint is not None:
            strategy.resume(checkpoint.server_round, checkpoint.models, checkpoint.state)
            monitor.latest = checkpoint.models[MODEL]
        with needing_room(recorder.scratch):
            strategy.start(
                grid,
                to_arrays(initial),
                num_rounds=config.run.num_rounds,
                timeout=config.waiting.round_timeout,
                evaluate_fn=monitor,
            )
            found = monitor.finish() + _attacks(config, grid, recorder, task)
            metrics = [metric.to_dict() for metric in found]
        if not config.sharing.keep_auxiliary:
            recorder.remove_auxiliary()
        recorder.check_checkpoint()  # before the earlier ones are removed
        recorder.keep_checkpoints(strategy.checkpoints.is_permanent)
        ending.complete(metrics)
    name_directory(recorder.directory)


def _log_start(recorder: RunRecorder, grid: Grid, context: Context, checkpoint: Checkpoint | None) -> None:
    """Write to the security log with what settings and code the run starts, or is resumed."""
    resumed = bool(context.run_config["resume"])
    after = {"after_round": checkpoint.server_round if checkpoint else None} if resumed else {}
    log = SecurityLog(functools.partial(recorder.append_to, SECURITY_LOG))
    facts = {"run_id": str(grid.run.run_id), "fab_hash": grid.run.fab_hash, **after}
    log.add(RESUMED if resumed else STARTED, **facts, **describe_code(context.run_config))


def _attacks(config: Config, grid: Grid, recorder: RunRecorder, task: DiffusionTask) -> list[Metric]:
    """Return the metrics of ``membership-attack``, in a simulation."""
    if config.evaluation.membership_attack == "none":
        return []
    if is_deployed(grid.run):
        note("membership-attack: the training images are at the sites; run `fedddpm audit RUN --client N` there")
        return []
    with cpu_threads(config.run.server_threads):
        return attack_run(recorder.directory, config, task, recorder.load_auxiliary())


def _digests(config: Config, grid: Grid, task: DiffusionTask) -> dict[str, str]:
    """Return the digests of this host's data that the run uses; those of sites in a deployment are on other hosts."""
    if config.data.partition == SITES and is_deployed(grid.run):
        return {name: digest for name, digest in task.data.split_digests.items() if name == "test"}
    return task.data.digests


def _base_directory(config: Config, grid: Grid) -> Path:
    """Return the folder that a relative ``resume``, or else ``output-dir``, is relative to.

    In a simulation it is the working directory of the user's command. In a deployment, where the user's command runs on
    another machine, it is the working directory of the ServerApp.
    """
    key, given = ("resume", config.run.resume) if config.run.resume else ("output-dir", config.run.output_dir)
    if Path(given).expanduser().is_absolute():
        return Path("/")
    if is_deployed(grid.run):
        return Path.cwd()
    caller = caller_directory(dict(grid.run.override_config))
    if caller is None:
        logger.warning(
            '%s = "%s" is relative, and the calling `flwr run` has ended: it is relative to %s; use --stream, '
            "`fedddpm run` or an absolute path.",
            key,
            given,
            Path.cwd(),
        )
    return caller or Path.cwd()
