"""Choose the sampler and the number of steps for a pipeline, from the user's options and its scheduler."""

from typing import Any

from fedddpm_app.config import ConfigError, Sampler, check_sampler
from fedddpm_app.diffusion.conditional import num_classes
from fedddpm_app.diffusion.pipelines import OWN, default_steps, is_plain
from fedddpm_app.diffusion.sampling import SAMPLERS


def check_eta(eta: float | None, sampler: str) -> None:
    """Raise ``ConfigError`` for an ``--eta`` that a sampler does not use."""
    if eta is not None and sampler != "ddim":
        raise ConfigError(f"--eta {eta:g} has no effect with --sampler {sampler}: use --sampler ddim.")


def choose_sampler(pipeline: Any, name: str, steps: int | None, usual_steps: int) -> tuple[Sampler | None, int]:
    """Return the sampler and the number of steps for a pipeline.

    Parameters
    ----------
    pipeline : DiffusionPipeline
        Its scheduler gives T and the betas.
    name : str
        One of our samplers, or ``OWN`` for the pipeline's own scheduler, which cannot take labels: a class-conditional
        model then uses ``ddim``.
    steps : int or None
        The number that the user gave; None uses the pipeline's default for ``OWN``, else the nearest possible number
        of at most ``usual_steps``.
    usual_steps : int
        >= 1.

    Returns
    -------
    sampler : {"ddpm", "ddim", "dpm-solver++"} or None
        None stands for the pipeline's own scheduler.
    steps : int

    Raises
    ------
    ConfigError
        For an unknown sampler, a sampler that the pipeline cannot use, or a number of steps that it cannot take.
    """
    if name == OWN and num_classes(pipeline) is None:
        return None, steps or default_steps(pipeline) or usual_steps
    wanted = "ddim" if name == OWN else name
    sampler = next((known for known in SAMPLERS if known == wanted), None)
    if sampler is None:
        raise ConfigError(f"--sampler {name} is not known: use one of {', '.join([*SAMPLERS, OWN])}.")
    if not is_plain(pipeline):
        fix = f"use --sampler {OWN}" if num_classes(pipeline) is None else "its own scheduler cannot take labels"
        raise ConfigError(f"--sampler {wanted} is for a UNet2DModel on pixels with betas: {fix}.")
    total: int = pipeline.scheduler.config.num_train_timesteps
    if steps is None:
        most = min(usual_steps, total)
        steps = next(s for s in range(most, 0, -1) if sampler != "ddim" or total % s == 0)
    check_sampler("--steps", sampler, steps, total)
    return sampler, steps
