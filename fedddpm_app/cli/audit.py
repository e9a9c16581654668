"""`fedddpm audit`: known attacks on a run, where the training images are at hand."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from torch import Tensor

from fedddpm_app.audit.attacks import Attempt, Audit, Copies, Effort, Findings
from fedddpm_app.audit.saving import PICTURE, save_findings
from fedddpm_app.cli.common import check_named, console, find_app, refuse, say
from fedddpm_app.cli.work_view import WorkView
from fedddpm_app.cli.writing import failing_to_write
from fedddpm_app.config import Config, ConfigError, load_saved
from fedddpm_app.data.dataset import PARTITION
from fedddpm_app.data.sites import is_site
from fedddpm_app.device import cpu_threads, resolve_device
from fedddpm_app.diffusion.choice import choose_sampler
from fedddpm_app.diffusion.conditional import guidance_for
from fedddpm_app.diffusion.ensemble import find_ensembles, in_order
from fedddpm_app.diffusion.images import DivergedError
from fedddpm_app.diffusion.labels import labels_like
from fedddpm_app.diffusion.sampling import image_seeds
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.progress import logger
from fedddpm_app.recording.auxiliary_set import load_auxiliary_set
from fedddpm_app.recording.layout import AUDIT, AUXILIARY, CONFIG, STATS
from fedddpm_app.recording.reading import changed_data, read_rows, run_config_of, sizes_of_clients
from fedddpm_app.training.declined import DeclinedError, TrainingDivergedError


def audit(
    run_dir: Path,
    client: int | None,
    data_path: str,
    images: int,
    draws: int,
    references: int,
    samples: int,
    device: str,
    cache_dir: str | None,
    algorithm: str | None,
    app_dir: Path | None,
) -> None:
    """Attack, print and write; ``commands.audit`` describes the arguments."""
    if data_path and client is None:
        refuse(f"--data-path {data_path} is one client's folder: give its number by --client.")
    if algorithm is not None:
        sys.path.insert(0, str(find_app(app_dir, run_dir)))
    try:
        config = _config(run_dir, device, cache_dir, algorithm)
        clients = _clients(config, client)
        with WorkView(console), cpu_threads(config.run.server_threads):
            task = DiffusionTask(config, data_path)
            _check_data(run_dir, task, clients)
            generated = _samples(run_dir, config, task, samples) if samples else None
            stored = load_auxiliary_set(run_dir / AUXILIARY)
            work = Audit(run_dir, config, task, clients, Effort(images, draws, references))
            findings = work.run(generated, (stored.data, stored.clients) if stored else None)
    except (ConfigError, DivergedError, TrainingDivergedError, DeclinedError) as error:
        refuse(str(error))
    _print_attacks(findings.attacks)
    _print_copies(findings.copies)
    _write(run_dir, config, findings, clients)


def _config(run_dir: Path, device: str, cache_dir: str | None, algorithm: str | None) -> Config:
    """Return the run's config; refuse a folder without a completed run."""
    if not find_ensembles(run_dir) or not (run_dir / CONFIG).is_file():
        raise ConfigError(f"RUN = {run_dir}: there is no completed run in it; give the directory of one.")
    saved = run_config_of(run_dir, fix="give another run")
    check_named(saved.get("algorithm"), [algorithm], f"--algorithm {saved.get('algorithm')}")
    places = {"device": device, "cache-dir": cache_dir or ""}  # a delivered run chooses no folder of this host
    return load_saved(saved, places)


def _clients(config: Config, client: int | None) -> list[int]:
    if client is None:
        return [*range(config.data.num_clients)]
    if client >= config.data.num_clients:
        raise ConfigError(f"--client {client}: the run has the clients 0 to {config.data.num_clients - 1}.")
    return [client]


def _check_data(run_dir: Path, task: DiffusionTask, clients: Sequence[int]) -> None:
    """Refuse data with other members than those that the run trained on: an attack would count wrong hits."""
    now = {number: len(task.data.client(number).train) for number in clients}
    sizes = sizes_of_clients(read_rows(run_dir / STATS))
    other = [number for number in clients if sizes.get(number, now[number]) != now[number]]
    changed = [] if is_site(task.data.config) else changed_data(run_dir, task.data.digests)
    if other or PARTITION in changed:
        numbers = "".join(f"; client {n} had {sizes[n]:,} of them, and has {now[n]:,}" for n in other[:1])
        raise ConfigError(
            f"RUN = {run_dir}: its clients trained on other images than those that are here{numbers}. An attack needs "
            "the run's own: restore them, or start a new run."
        )
    if "train" in changed:
        logger.warning("the pixels or labels of the training images are not those that the run began with")


def _samples(run_dir: Path, config: Config, task: DiffusionTask, count: int) -> Tensor | None:
    """Return images of the run's one generator; None if every client has its own."""
    ensemble = find_ensembles(run_dir).get("")
    if ensemble is None:
        return None
    settings, labels = config.evaluation, None
    if config.data.class_conditional:
        labels = labels_like(task.data.train.labels, count)
    pipeline = ensemble.first()
    name, steps = choose_sampler(pipeline, settings.eval_final_sampler, None, settings.eval_final_sampler_steps)
    return in_order(
        ensemble.sample(
            resolve_device(config.run.device),
            sampler=name,
            steps=steps,
            seeds=image_seeds(config.run.seed, "audit-samples", count),
            labels=labels,
            batch_size=settings.eval_batch_size,
            eta=config.diffusion.ddim_eta,
            guidance=guidance_for(pipeline, None),
        )
    )


def _print_attacks(attempts: Sequence[Attempt]) -> None:
    table = Table(
        title="membership inference, with 95 % intervals", title_justify="left", box=box.SIMPLE_HEAD, padding=0
    )
    for column in ("target", "attack"):
        table.add_column(column)
    for column in ("AUC", "TPR at 1 % FPR", "members", "others"):
        table.add_column(column, justify="right")
    for each in attempts:
        attack = each.attack
        table.add_row(
            each.target,
            attack.name,
            _with_interval(attack.auc, attack.auc_interval),
            _with_interval(attack.tpr, attack.tpr_interval),
            f"{len(attack.members):,}",
            f"{len(attack.others):,}",
        )
    console.print(table)
    say("An AUC of 0.5 and a TPR of 0.01 are those of a guess.")


def _print_copies(copies: Sequence[Copies]) -> None:
    if not copies:
        return
    table = Table(title="near copies of training images", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("images")
    for column in ("number", "share", "of real images"):
        table.add_column(column, justify="right")
    for found in copies:
        table.add_row(found.name, f"{found.count:,}", f"{found.share:.3f}", f"{found.expected:.3f}")
    console.print(table)


def _with_interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _write(run_dir: Path, config: Config, findings: Findings, clients: Sequence[int]) -> None:
    with failing_to_write():
        save_findings(run_dir, findings, config.run.seed, clients)
    say(f"audit: {(run_dir / AUDIT).resolve()}, plots/{PICTURE}")
