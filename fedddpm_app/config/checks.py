"""Checks of values that are valid alone but not together."""

import math

from fedddpm_app.config.errors import ConfigError
from fedddpm_app.config.fields import Sampler
from fedddpm_app.config.groups import Config, NotValidError
from fedddpm_app.limits import PIPELINE_NUMBER

MIN_ATTENTION_CHANNELS = 8  # one attention head of UNet2DModel
_TRIED = 10**5  # divisors; the check of any number takes a few milliseconds


def check_sampler(key: str, sampler: Sampler, steps: int, diffusion_steps: int) -> None:
    """Raise ``ConfigError``, with ``key``, if ``sampler`` cannot take ``steps`` of T = ``diffusion_steps`` steps."""
    if steps > diffusion_steps:
        raise ConfigError(
            f"{key} = {steps} is more than diffusion-steps = {diffusion_steps}: use at most {diffusion_steps} "
            "sampler steps."
        )
    if sampler == "ddim" and diffusion_steps % steps:
        small = range(1, min(math.isqrt(diffusion_steps), _TRIED) + 1)
        divisors = {each for d in small if diffusion_steps % d == 0 for each in (d, diffusion_steps // d)}
        fits = sorted(sorted(divisors, key=lambda d: abs(d - steps))[:2])
        raise ConfigError(
            f"{key} = {steps} does not divide diffusion-steps = {diffusion_steps}, as DDIM requires: use "
            f"{' or '.join(map(str, fits))}, or another sampler."
        )


def check_warmup(what: str, steps: int, warmup_steps: int) -> None:
    """Raise ``ConfigError`` if the warm-up takes all ``steps`` of a training; ``what`` names their source."""
    if steps <= warmup_steps:
        raise ConfigError(
            f"warmup-steps = {warmup_steps} is not below {what}, so that the learning rate is never reached: "
            f"use warmup-steps = {steps // 10}."
        )


def _check_preview_sampler(config: Config) -> None:
    preview, total = config.preview, config.diffusion.diffusion_steps
    check_sampler("preview-sampler-steps", preview.sampler, preview.sampler_steps, total)


def _check_eval_sampler(config: Config) -> None:
    evaluation, total = config.evaluation, config.diffusion.diffusion_steps
    if evaluation.eval_images:
        check_sampler("eval-sampler-steps", evaluation.eval_sampler, evaluation.eval_sampler_steps, total)


def _check_final_sampler(config: Config) -> None:
    evaluation, total = config.evaluation, config.diffusion.diffusion_steps
    if evaluation.eval_final_images:
        final = evaluation.eval_final_sampler_steps
        check_sampler("eval-final-sampler-steps", evaluation.eval_final_sampler, final, total)


def _check_betas(config: Config) -> None:
    diffusion = config.diffusion
    if diffusion.beta_schedule != "squaredcos_cap_v2" and diffusion.beta_start >= diffusion.beta_end:
        raise ConfigError(
            f"beta-start = {diffusion.beta_start} is not below beta-end = {diffusion.beta_end}: "
            "noise must grow with t; the usual values are 0.0001 and 0.02."
        )


def _check_steps(config: Config) -> None:
    training = config.training
    if (training.local_steps > 0) == (training.local_epochs > 0):
        raise ConfigError(
            f"local-steps = {training.local_steps} and local-epochs = {training.local_epochs}: "
            "set exactly one of them, the other to 0."
        )


def _check_momentum(config: Config) -> None:
    training = config.training
    if training.momentum and training.optimizer != "sgd":
        raise ConfigError(
            f'momentum = {training.momentum} belongs to optimizer = "sgd", but optimizer = "{training.optimizer}" has '
            "its own momentum: use momentum = 0.0."
        )


def _check_warmup(config: Config) -> None:
    training = config.training
    if training.local_steps:
        check_warmup(f"local-steps = {training.local_steps}", training.local_steps, training.warmup_steps)


def _check_clients(config: Config) -> None:
    run, data = config.run, config.data
    if run.clients_per_round > data.num_clients:
        raise ConfigError(
            f"clients-per-round = {run.clients_per_round} is more than num-clients = {data.num_clients}: "
            f"use at most {data.num_clients}, or 0 for all."
        )


def _check_classes_per_client(config: Config) -> None:
    data = config.data
    if data.partition == "pathological" and data.classes_per_client > data.num_classes:
        raise ConfigError(
            f"classes-per-client = {data.classes_per_client} is more than num-classes = {data.num_classes}: "
            f"use at most {data.num_classes}."
        )


def _check_class_dropout(config: Config) -> None:
    data, scale = config.data, config.diffusion.guidance_scale
    if data.class_dropout and not data.class_conditional:
        raise ConfigError(
            f"class-dropout = {data.class_dropout} with class-conditional = false: the model has no classes to drop; "
            "use class-conditional = true, or class-dropout = 0.0."
        )
    if scale != 1 and not data.class_dropout:
        raise ConfigError(
            f"guidance-scale = {scale} with class-dropout = 0.0: guidance needs a model that also learns images "
            "without their classes; use class-conditional = true and class-dropout = 0.1, or guidance-scale = 1.0."
        )


def _check_sites(config: Config) -> None:
    data = config.data
    if data.partition == "sites" and not data.dataset.startswith("path:"):
        raise ConfigError(
            f'partition = "sites" with dataset = "{data.dataset}": every client needs its own folder; use dataset = '
            '"path:/abs/folder", which holds one folder per client (and "test"), or partition = "iid".'
        )


def _check_class_names(config: Config) -> None:
    data = config.data
    if data.partition != "sites":
        return
    if len(set(data.classes)) < len(data.classes):
        raise ConfigError(f'class-names = "{data.class_names}" has a name twice: give each class a different name.')
    if data.classes and len(data.classes) != data.num_classes:
        raise ConfigError(
            f"num-classes = {data.num_classes}, but class-names has {len(data.classes)} names: "
            f"use num-classes = {len(data.classes)}."
        )
    if data.class_conditional and not data.classes:
        raise ConfigError(
            'class-conditional = true with partition = "sites" needs class-names = "cat,dog,...", so that a class has '
            "the same label at every site."
        )


def _check_waiting(config: Config) -> None:
    waiting, clients = config.waiting, config.data.num_clients
    if waiting.min_available_nodes > clients:
        raise ConfigError(
            f"min-available-nodes = {waiting.min_available_nodes} is more than num-clients = {clients}: "
            f"use at most {clients}, or 0 for all."
        )


def _check_replies(config: Config) -> None:
    waiting = config.waiting
    sampled = config.run.clients_per_round or config.data.num_clients
    if waiting.quorum(sampled) > sampled:
        raise ConfigError(
            f"min-replies = {waiting.min_replies} is more than the {sampled} clients of a round: use at most {sampled}."
        )


def _check_transport(config: Config) -> None:
    transport = config.transport
    if transport.transport == "arrays" and transport.wire_dtype != "fp32":
        raise ConfigError(
            f'wire-dtype = "{transport.wire_dtype}" cannot be used with transport = "arrays", which sends Flower\'s '
            'arrays as they are: use transport = "flat", or wire-dtype = "fp32".'
        )


def _check_compile(config: Config) -> None:
    if config.run.compile == "on" and config.run.memory_format == "channels-last":
        raise ConfigError(
            'compile = "on" and memory-format = "channels-last": torch compiles wrong gradients for the two together; '
            'use memory-format = "contiguous", or compile = "off".'
        )


def _check_secure(config: Config) -> None:
    if not config.secure.aggregation:
        return
    transport, admission = config.transport, config.admission
    if transport.wire_dtype != "fp32":
        raise ConfigError(
            f'wire-dtype = "{transport.wire_dtype}" cannot be used with secure-aggregation = true, which rounds '
            'updates to whole numbers, whose sum is exact: use wire-dtype = "fp32".'
        )
    if admission.max_update_norm:
        raise ConfigError(
            f'max-update-norm = "{admission.max_update_norm}" cannot be used with secure-aggregation = true, because '
            'the server does not see a client\'s update: use max-update-norm = "", and secure-clip, which each client '
            "applies to its own values."
        )


def _check_client_dp(config: Config) -> None:
    dp, count = config.client_dp, config.data.num_clients
    if not dp.budget.is_private:
        return
    given = f"client-dp-epsilon = {dp.epsilon}"
    if config.secure.aggregation:
        raise ConfigError(
            f"{given} cannot be used with secure-aggregation = true, because the server clips each client's update, "
            "which it then does not see: use secure-aggregation = false, or 0.0."
        )
    if config.admission.max_update_norm:
        raise ConfigError(
            f'{given} cannot be used with max-update-norm = "{config.admission.max_update_norm}", because one client '
            'could decide whether another one is left out: use max-update-norm = "", since client-dp-clip bounds '
            "every update."
        )
    if config.waiting.min_replies != 1:
        raise ConfigError(
            f"{given} cannot be used with min-replies = {config.waiting.min_replies}, because a round that is repeated "
            "tells who did not answer: use min-replies = 1."
        )
    if dp.delta * count >= 1:
        raise ConfigError(
            f"client-dp-delta = {dp.delta} protects no single one of {count} clients: use a delta below "
            f"{1 / count:.1e}."
        )


def _check_secure_clients(config: Config) -> None:
    count = config.run.clients_per_round or config.data.num_clients
    if config.secure.aggregation and count < 2:
        raise ConfigError(
            f"secure-aggregation = true with {count} client per round: a sum of one update is that update; use 2 "
            "clients per round or more."
        )


def _check_unet(config: Config) -> None:
    size, unet = config.data.image_size, config.unet
    halvings = len(unet.block_out_channels) - 1
    if max(unet.block_out_channels) > PIPELINE_NUMBER:
        raise ConfigError(f'unet-channels = "{unet.channels}": use at most {PIPELINE_NUMBER} channels.')
    if size % 2**halvings or size >> halvings < 2:
        fits = max(2, round(size / 2**halvings)) * 2**halvings
        raise ConfigError(
            f"image-size = {size} cannot be halved {halvings} times down to 2 pixels or more, as unet-channels = "
            f'"{unet.channels}" requires: use image-size = {fits} or fewer channel levels.'
        )
    sizes = [size >> level for level in range(halvings + 1)]
    for resolution in unet.attention_sizes:
        if resolution not in sizes:
            raise ConfigError(
                f'unet-attention-resolutions = "{unet.attention_resolutions}": the feature maps are '
                f"{', '.join(map(str, sizes))} pixels wide; use some of these sizes, or an empty text for no attention."
            )
    attended = {c for c, width in zip(unet.block_out_channels, sizes, strict=True) if width in unet.attention_sizes}
    if attended and min(attended | {unet.block_out_channels[-1]}) < MIN_ATTENTION_CHANNELS:  # also in the middle block
        raise ConfigError(
            f'unet-attention-resolutions = "{unet.attention_resolutions}" needs {MIN_ATTENTION_CHANNELS} channels or '
            f'more in levels with attention, but unet-channels = "{unet.channels}": use more channels, or no attention.'
        )


def _check_norm_groups(config: Config) -> None:
    unet = config.unet
    for channels in unet.block_out_channels:
        if channels == 0 or channels % unet.norm_groups:
            raise ConfigError(
                f"unet-norm-groups = {unet.norm_groups} does not divide {channels} of unet-channels = "
                f'"{unet.channels}": make every channel count a multiple of it.'
            )


_CHECKS = (
    _check_unet,
    _check_norm_groups,
    _check_preview_sampler,
    _check_eval_sampler,
    _check_final_sampler,
    _check_betas,
    _check_steps,
    _check_momentum,
    _check_warmup,
    _check_clients,
    _check_classes_per_client,
    _check_class_dropout,
    _check_sites,
    _check_class_names,
    _check_waiting,
    _check_replies,
    _check_transport,
    _check_compile,
    _check_secure,
    _check_secure_clients,
    _check_client_dp,
)


def problems_together(config: Config) -> list[str]:
    """Return a sentence for all values that are valid alone but not together.

    A check that needs a value that is not valid alone is left out.
    """
    problems = []
    for check in _CHECKS:
        try:
            check(config)
        except NotValidError:
            continue
        except ConfigError as error:
            problems.append(str(error))
    return problems
