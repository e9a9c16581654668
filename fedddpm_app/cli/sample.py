"""`fedddpm sample`: generate a sheet of new images with the model of a completed run."""

from contextlib import nullcontext
from pathlib import Path

from fedddpm_app.cli.common import console, refuse, say
from fedddpm_app.cli.writing import failing_to_write
from fedddpm_app.config import ConfigError
from fedddpm_app.device import resolve_device
from fedddpm_app.diffusion.choice import check_eta, choose_sampler
from fedddpm_app.diffusion.conditional import guidance_for, num_classes
from fedddpm_app.diffusion.ensemble import PipelineEnsemble, find_ensembles, in_order
from fedddpm_app.diffusion.images import DivergedError
from fedddpm_app.diffusion.labels import class_rows
from fedddpm_app.diffusion.pipelines import OWN, is_plain
from fedddpm_app.diffusion.sampling import image_seeds, sampler_name
from fedddpm_app.recording.files import writing
from fedddpm_app.recording.layout import SAMPLES
from fedddpm_app.recording.samples import save_samples

_OURS, _STEPS = "dpm-solver++", 25
_BATCH_SIZE = 256


def sample(
    run_dir: Path,
    num_images: int,
    sampler: str | None,
    steps: int | None,
    eta: float | None,
    guidance: float | None,
    seed: int,
    device: str,
    out: Path | None,
) -> None:
    """Generate and write a sheet; ``commands.sample`` describes the arguments."""
    if out is not None and out.suffix.lower() != ".png":
        refuse(f"--out {out} is not a PNG file: give a name that ends in .png.")
    try:
        ensemble = _find(run_dir)
        pipeline = ensemble.first()
        name, steps = choose_sampler(pipeline, sampler or (_OURS if is_plain(pipeline) else OWN), steps, _STEPS)
        check_eta(eta, name or OWN)
        classes, guided = num_classes(pipeline), guidance_for(pipeline, guidance)
        labels = None if classes is None else class_rows(classes, num_images)
        count = num_images if labels is None else len(labels)
        with console.status("generating") if console.is_terminal else nullcontext():
            batches = ensemble.sample(
                resolve_device(device),
                sampler=name,
                steps=steps,
                seeds=image_seeds(seed, "sample", count),
                labels=labels,
                batch_size=_BATCH_SIZE,
                eta=eta or 0.0,
                guidance=guided,
            )
            images = in_order(batches)
    except (ConfigError, DivergedError) as error:
        refuse(str(error))
    if images.shape[1] not in (1, 3):
        refuse(f"RUN = {run_dir}: its images have {images.shape[1]} channels; give a pipeline of grey or RGB images.")
    noise = (f"-eta{eta:g}" if eta else "") + (f"-guidance{guided.scale:g}" if guided else "")
    path = out or (run_dir / SAMPLES / f"sample-{name or OWN}{noise}-{steps}-seed{seed}.png")
    with failing_to_write(), writing(path):
        how = sampler_name(name, eta or 0.0, guided) if name else OWN
        title = f"{run_dir.resolve().name}: {how}, {steps} steps, seed {seed}"
        save_samples(images, path, title, labels, class_names=[])
    say(f"{count} images: {path.resolve()}")


def _find(run_dir: Path) -> PipelineEnsemble:
    """Return the one generator in a folder."""
    found = find_ensembles(run_dir)
    if not found:
        raise ConfigError(f"RUN = {run_dir}: there is no pipeline in it; give the directory of a completed run.")
    if "" not in found:
        first = next(iter(found.values())).folders[0]
        raise ConfigError(
            f"RUN = {run_dir}: it holds a model for each of {len(found)} clients; give the folder of one model, such "
            f"as {first}."
        )
    return found[""]
