"""`fedddpm export`: a run's model as a pipeline of diffusers with a model card, and its push to the hub."""

import re
from pathlib import Path

import typer

from fedddpm_app.cli.common import FAILED, console, refuse, say
from fedddpm_app.cli.writing import failing_to_write
from fedddpm_app.config import ConfigError
from fedddpm_app.device import resolve_device
from fedddpm_app.diffusion.images import DivergedError
from fedddpm_app.diffusion.pruned_unet import PrunedUNet2DModel
from fedddpm_app.export.card import model_card
from fedddpm_app.export.exported import ExportedRun, read_run
from fedddpm_app.export.hub import PushError, check_push, push
from fedddpm_app.export.metadata import CardFacts
from fedddpm_app.export.models import SAMPLES, find_model, load_model, new_folder, save_sheet_of
from fedddpm_app.recording.files import writing

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


def export_run(
    run_dir: Path,
    folder: Path,
    client: int | None,
    license_id: str,
    samples: int,
    device: str,
    push_to: str,
    public: bool,
) -> None:
    """Write the folder, and push it; ``commands.export_run`` describes the arguments."""
    try:
        _check(license_id, push_to, public)
        run, (name, source) = read_run(run_dir), find_model(run_dir, client)
        with failing_to_write(), new_folder(folder), writing(folder), console.status("exporting"):
            _export(run, source, folder, name, license_id, samples, device, push_to)
    except (ConfigError, DivergedError) as error:
        refuse(str(error))
    say(f"pipeline and model card: {folder.resolve()}")
    if push_to:
        _push(folder, push_to, public)


def _check(license_id: str, push_to: str, public: bool) -> None:
    if license_id and not _LICENSE.fullmatch(license_id):
        raise ConfigError(f"--license {license_id!r} is not an identifier of the hub: use one such as apache-2.0.")
    if public and not push_to:
        raise ConfigError("--public has no effect without --push REPO: add it, or leave --public out.")
    if push_to:
        check_push(push_to)


def _export(
    run: ExportedRun,
    source: Path,
    folder: Path,
    name: str,
    license_id: str,
    samples: int,
    device: str,
    push_to: str,
) -> None:
    pipeline = load_model(source, run.config)
    pipeline.save_pretrained(str(folder), safe_serialization=True)
    if samples:
        pipeline = pipeline.to(resolve_device(device))
        save_sheet_of(pipeline, folder / SAMPLES, run.config, samples, run.class_names)
    conditional = run.config.data.class_conditional
    title = push_to.rpartition("/")[2] or folder.resolve().name
    facts = CardFacts(
        title=title,
        place=push_to or title,
        license=license_id,
        client=name,
        needs_package=conditional or isinstance(pipeline.unet, PrunedUNet2DModel),
        has_samples=samples > 0,
    )
    (folder / "README.md").write_text(model_card(run, facts), encoding="utf-8")


def _push(folder: Path, repo: str, public: bool) -> None:
    try:
        with console.status("pushing"):
            address = push(folder, repo, public=public)
    except PushError as error:
        say(str(error))
        raise typer.Exit(FAILED) from error
    say(f"{'public' if public else 'private'} repository: {address}")
