"""Values that are fine alone and do not fit together."""

from fedddpm_app.config.errors import ConfigError
from fedddpm_app.config.groups import Config


def check_together(config: Config) -> None:
    """Raise ``ConfigError`` where values that are fine alone do not fit together."""
    _check_unet(config)
    steps = config.diffusion.diffusion_steps
    for key, value in (
        ("auxiliary-sampler-steps", config.auxiliary.sampler_steps),
        ("preview-sampler-steps", config.preview.sampler_steps),
    ):
        if value > steps:
            raise ConfigError(
                f"{key} = {value} is more than diffusion-steps = {steps}: use at most {steps} sampler steps."
            )
    if config.diffusion.beta_start >= config.diffusion.beta_end:
        raise ConfigError(
            f"beta-start = {config.diffusion.beta_start} is not below beta-end = {config.diffusion.beta_end}: "
            "noise must grow with t; the usual values are 0.0001 and 0.02."
        )
    if (config.training.local_steps > 0) == (config.training.local_epochs > 0):
        raise ConfigError(
            f"local-steps = {config.training.local_steps} and local-epochs = {config.training.local_epochs}: "
            "set exactly one of them, the other to 0."
        )
    if config.run.clients_per_round > config.data.num_clients:
        raise ConfigError(
            f"clients-per-round = {config.run.clients_per_round} is more than num-clients = "
            f"{config.data.num_clients}: use at most {config.data.num_clients}, or 0 for all."
        )
    if config.data.classes_per_client > config.data.num_classes:
        raise ConfigError(
            f"classes-per-client = {config.data.classes_per_client} is more than num-classes = "
            f"{config.data.num_classes}: use at most {config.data.num_classes}."
        )


def _check_unet(config: Config) -> None:
    size, unet = config.data.image_size, config.unet
    halvings = len(unet.block_out_channels) - 1
    if size % 2**halvings or size >> halvings < 2:
        fits = max(2, round(size / 2**halvings)) * 2**halvings
        raise ConfigError(
            f"image-size = {size} cannot be halved {halvings} times down to 2 pixels or more, as unet-channels = "
            f'"{unet.channels}" needs: use image-size = {fits} or fewer channel levels.'
        )
    sizes = [size >> level for level in range(halvings + 1)]
    for resolution in unet.attention_sizes:
        if resolution not in sizes:
            raise ConfigError(
                f'unet-attention-resolutions = "{unet.attention_resolutions}": the feature maps are '
                f"{', '.join(map(str, sizes))} pixels wide; use some of these, or an empty text for none."
            )
    for channels in unet.block_out_channels:
        if channels == 0 or channels % unet.norm_groups:
            raise ConfigError(
                f"unet-norm-groups = {unet.norm_groups} does not divide {channels} of unet-channels = "
                f'"{unet.channels}": make every channel count a multiple of it.'
            )
