"""A pipeline of diffusers that takes class labels, with classifier-free guidance if its model was trained for it.

``ClassConditionalPipeline.from_pretrained(folder)`` loads it where this package is installed; the folder has no code.
diffusers' own pipelines on pixels have no argument for labels.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fedddpm_app.config import Config, ConfigError
from fedddpm_app.diffusion.guidance import Guidance
from fedddpm_app.diffusion.images import to_uint8
from fedddpm_app.diffusion.reverse import denoise
from fedddpm_app.diffusion.sampling import set_timesteps


class ClassConditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Generates images of given classes.

    Parameters
    ----------
    unet : UNet2DModel
        Class-conditional.
    scheduler : SchedulerMixin
        Any scheduler of diffusers; another one may take its place.
    null_class : int, optional
        The label of no class, which is the last one that the model knows; None for a model without guidance.
    guidance_scale : float
        The default of the call.

    Raises
    ------
    ValueError
        When the model has no classes, or the others do not fit it.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: Any, scheduler: Any, null_class: int | None = None, guidance_scale: float = 1.0) -> None:
        super().__init__()
        known = unet.config.num_class_embeds
        if known is None:
            raise ValueError("the model is not class-conditional: its num_class_embeds is null")
        if null_class not in (None, known - 1):
            raise ValueError(f"null_class = {null_class!r} is not the last of the model's {known} labels")
        if isinstance(guidance_scale, bool) or not isinstance(guidance_scale, int | float):
            raise ValueError(f"guidance_scale = {guidance_scale!r} is not a number")
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(null_class=null_class, guidance_scale=guidance_scale)
        self.guidance(None)

    @property
    def num_classes(self) -> int:
        """The number of classes, without the null class."""
        return int(self.unet.config.num_class_embeds) - (self.config.null_class is not None)

    def guidance(self, scale: float | None) -> Guidance | None:
        """Return the guidance with a scale, by default the pipeline's own; None for a scale of 1.

        Raises
        ------
        ValueError
            When the scale is negative or not finite, or the model was not trained for guidance.
        """
        scale = self.config.guidance_scale if scale is None else scale
        if not (math.isfinite(scale) and scale >= 0):
            raise ValueError(f"guidance_scale = {scale}: use a number of at least 0")
        if scale == 1:
            return None
        if self.config.null_class is None:
            raise ValueError(
                f"guidance_scale = {scale}: the model was not trained for guidance; use 1, or train it with the key "
                "class-dropout, such as class-dropout = 0.1"
            )
        return Guidance(scale, self.config.null_class)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | Tensor,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Generate one image for each label.

        Parameters
        ----------
        class_labels : int, sequence of int, or Tensor
            Each in [0, ``num_classes``).
        guidance_scale : float, optional
            s in ``null + s (class - null)``: 1 is the model of the classes, 0 that without classes, above 1 makes
            classes clearer and images less diverse. By default that of the training.
        num_inference_steps : int, optional
            Denoising steps, in [1, T]; by default T, the diffusion steps of the training.
        generator : torch.Generator, or one per image
            On the CPU, the images are the same on every device.
        output_type : {"pil", "np", "pt"}
            ``np`` is float32 in [0, 1] of shape (N, H, W, C), ``pt`` the same as (N, C, H, W).
        return_dict : bool
            False returns a tuple.

        Returns
        -------
        ImagePipelineOutput
            ``images`` has the images.

        Raises
        ------
        ValueError
            For labels that are no classes, a scale that the model cannot use, and impossible steps.
        """
        labels, guidance = self._labels(class_labels), self.guidance(guidance_scale)
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f'output_type = "{output_type}": use "pil", "np" or "pt"')
        unet, device = self.unet, self._execution_device
        self._set_timesteps(num_inference_steps)
        shape = (len(labels), unet.config.in_channels, *height_and_width(unet.config.sample_size))
        noise = randn_tensor(shape, generator=generator, device=device)
        images = denoise(
            unet,
            self.scheduler,
            noise,
            generator,
            labels=labels.to(device),
            guidance=guidance,
            progress=self.progress_bar,
        )
        found = _as_output(to_uint8(images).cpu(), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=found) if return_dict else (found,)

    def _labels(self, given: int | Sequence[int] | Tensor) -> Tensor:
        labels = torch.as_tensor(given).reshape(-1)
        if not len(labels) or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise ValueError("class_labels: give at least one whole number, such as [0, 1]")
        if not ((labels >= 0) & (labels < self.num_classes)).all():
            odd = labels[(labels < 0) | (labels >= self.num_classes)][0]
            raise ValueError(f"class_labels: {odd} is not a class of the model; use 0 to {self.num_classes - 1}")
        return labels.long()

    def _set_timesteps(self, steps: int | None) -> None:
        total = int(self.scheduler.config.num_train_timesteps)
        steps = total if steps is None else steps
        if not 1 <= steps <= total:
            raise ValueError(f"num_inference_steps = {steps}: use a number from 1 to {total}")
        if isinstance(self.scheduler, DDPMScheduler):
            set_timesteps(self.scheduler, steps, torch.device("cpu"))
        else:
            self.scheduler.set_timesteps(steps, device="cpu")


def create_pipeline(unet: Any, scheduler: Any, config: Config) -> DiffusionPipeline:
    """Return the pipeline of a run's model: diffusers' own one, or that of a class-conditional model."""
    if unet.config.num_class_embeds is None:
        return DDPMPipeline(unet=unet, scheduler=scheduler)
    scale = config.diffusion.guidance_scale
    return ClassConditionalPipeline(unet, scheduler, null_class=config.data.null_class, guidance_scale=scale)


def num_classes(pipeline: Any) -> int | None:
    """Return the number of classes of a class-conditional UNet; None for an unconditional pipeline."""
    if isinstance(pipeline, ClassConditionalPipeline):
        return pipeline.num_classes
    config = getattr(getattr(pipeline, "unet", None), "config", {})
    classes: int | None = config.get("num_class_embeds")
    return classes


def guidance_for(pipeline: Any, scale: float | None) -> Guidance | None:
    """Return the guidance of a pipeline's samples with the scale of an option, by default the pipeline's own.

    Raises
    ------
    ConfigError
        When the pipeline's model cannot use the scale.
    """
    if isinstance(pipeline, ClassConditionalPipeline):
        try:
            return pipeline.guidance(scale)
        except ValueError as error:
            raise ConfigError(f"--{str(error).replace('_scale', '', 1)}.") from error
    if scale not in (None, 1):
        raise ConfigError(
            f"--guidance = {scale:g}: the model was not trained for guidance; leave the option out, or train a model "
            "with class-conditional = true and class-dropout = 0.1."
        )
    return None


def height_and_width(size: Any) -> tuple[int, int]:
    """Return the ``sample_size`` of a UNet's config, which is a number or two, as two."""
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _as_output(images: Tensor, kind: str) -> Any:
    """Return uint8 images, (N, C, H, W), as a call of a pipeline returns them."""
    if kind == "pt":
        return images.float() / 255
    pixels = images.permute(0, 2, 3, 1).float().numpy() / 255
    return pixels if kind == "np" else DiffusionPipeline.numpy_to_pil(pixels)
