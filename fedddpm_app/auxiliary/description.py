"""The description of an algorithm that trains on D_aux: its keys, their checks, and its cost."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from fedddpm_app.auxiliary.gate import KEYS as CHECK_KEYS
from fedddpm_app.auxiliary.gate import check_settings, keys_of_no_check
from fedddpm_app.auxiliary.pretraining import OwnTraining
from fedddpm_app.config import Config, ConfigError, check_sampler, check_warmup, keys_of_algorithms
from fedddpm_app.diffusion.unet import images_as_models
from fedddpm_app.federation.cost import Cost, images_of_generation, of_images
from fedddpm_app.federation.description import AlgorithmDescription

_PRETRAINING = ("pretrain-", "ema-decay", *CHECK_KEYS)
_CORRECTING = ("auxiliary-", "correction-", "keep-auxiliary")


class AuxiliaryDescription(AlgorithmDescription):
    """What a class says, without a run, about own models of clients, D_aux and corrections; a base of ``FedDDPM``.

    Attributes
    ----------
    keeps_pretrained : bool
        Whether the pretrained models are needed until the end of the run, and not only for D_aux.
    images_per_image : float
        The cost of an image of D_aux in the server's training, in images that go forward and backward.
    """

    keeps_pretrained: ClassVar[bool] = False
    images_per_image: ClassVar[float] = 1.0
    uses_keys = (*_PRETRAINING, *_CORRECTING, "init-from-pretrained")

    @classmethod
    def own_training(cls, config: Config) -> OwnTraining:
        """Return the training of the clients' own models."""
        return OwnTraining("pretrain", config.pretrain.steps)

    @classmethod
    def builds(cls, config: Config) -> bool:
        """Return whether a run can need D_aux."""
        return config.correction.steps > 0 and (cls.num_corrections(config) > 0 or cls.builds_at_start(config))

    @classmethod
    def pretrains(cls, config: Config) -> bool:
        """Return whether a run can need the clients' own models."""
        return cls.builds(config) or config.fedddpm.init_from_pretrained

    @classmethod
    def builds_at_start(cls, config: Config) -> bool:
        """Return whether D_aux is built before round 1; if not, it is built when the first correction is due."""
        return config.correction.steps > 0 and config.fedddpm.pretrain_from == "initial"

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Check the keys of pretraining, of the auxiliary set and of the correction, if the run uses them."""
        super().check_config(config)
        pretrain_steps, correction_steps = config.pretrain.steps, config.correction.steps
        if cls.pretrains(config):
            check_warmup(f"pretrain-steps = {pretrain_steps}", pretrain_steps, config.training.warmup_steps)
        if correction_steps:
            check_warmup(f"correction-steps = {correction_steps}", correction_steps, config.training.warmup_steps)
            auxiliary, diffusion_steps = config.auxiliary, config.diffusion.diffusion_steps
            check_sampler("auxiliary-sampler-steps", auxiliary.sampler, auxiliary.sampler_steps, diffusion_steps)
        if config.fedddpm.init_from_pretrained and config.fedddpm.pretrain_from != "initial":
            raise ConfigError(
                f"init-from-pretrained = true needs pretrained models before round 1, but pretrain-from = "
                f'"{config.fedddpm.pretrain_from}" trains them later: use pretrain-from = "initial", or '
                "init-from-pretrained = false."
            )
        if cls.pretrains(config):
            check_settings(config)
        if config.auxiliary.sharing == "images" and (needs := cls.needs_models(config)):
            raise ConfigError(f'auxiliary-sharing = "images", but {needs}; or use auxiliary-sharing = "models".')

    @classmethod
    def needs_models(cls, config: Config) -> str:
        """Return why the server needs the clients' own models, with another fix; empty if their images are enough."""
        if config.fedddpm.init_from_pretrained:
            return "init-from-pretrained = true averages the clients' models: use init-from-pretrained = false"
        if cls.keeps_pretrained:
            return f'algorithm = "{config.run.algorithm}" learns from the clients\' models: use algorithm = "fedddpm"'
        return ""

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the keys of the auxiliary set, the correction and pretraining, if the run does not use them."""
        unused = super().keys_without_effect(config) | keys_of_no_check(config)
        if config.auxiliary.sharing == "images":
            unused["auxiliary-generation"] = 'auxiliary-sharing = "images": clients generate their own images'
        if config.correction.steps == 0:
            idle = (*_CORRECTING, "plus-", "kd-", *(() if cls.pretrains(config) else _PRETRAINING))
            idle_keys = [key for key in keys_of_algorithms() if key.startswith(idle) and key != "correction-steps"]
            unused = {**dict.fromkeys(idle_keys, "correction-steps = 0"), **unused}
        elif cls.num_corrections(config) < 2:
            unused["correction-keep-optimizer"] = "the run has at most one correction"
        return unused

    @classmethod
    def averages(cls, config: Config) -> dict[str, tuple[int, str]]:
        """Add the average of a pretrained model."""
        pretraining = {"ema-decay": (config.pretrain.steps, "step")} if cls.pretrains(config) else {}
        return super().averages(config) | pretraining

    @classmethod
    def total_steps(cls, config: Config, client_steps: int) -> int:
        """Add the steps of pretraining, on every client, and of the corrections."""
        pretraining = config.data.num_clients * cls.own_training(config).steps if cls.pretrains(config) else 0
        in_rounds = client_steps if cls.trains_on_clients else 0
        return in_rounds + pretraining + cls.num_corrections(config) * config.correction.steps

    @classmethod
    def cost(cls, config: Config, sizes: Sequence[int]) -> Cost:
        """Add pretraining on every client, the generation of D_aux (on the server), and the corrections."""
        cost = super().cost(config, sizes)
        if cls.pretrains(config):
            cost += cls.cost_of_own_models(config, sizes)
        if cls.builds(config):
            corrections = cls.num_corrections(config) * cls.images_of_steps(config, config.correction.steps)
            by_clients = config.auxiliary.sharing == "images" and config.checks_memorization  # and counted there
            cost += of_images(config, corrections + (0.0 if by_clients else cls.generated_images(config)))
        return cost

    @classmethod
    def cost_of_own_models(cls, config: Config, sizes: Sequence[int]) -> Cost:
        """Return the cost of one training of own models by all clients."""
        cost = cls.own_training(config).cost(config, sizes)
        if config.auxiliary.sharing == "models":
            return cost
        return replace(cost, models_up=images_as_models(config.unet, config.data, config.auxiliary.size))

    @classmethod
    def generated_images(cls, config: Config) -> float:
        """Return the compute of the generation of D_aux, in training images."""
        return images_of_generation(config.auxiliary.size, config.auxiliary.sampler_steps)

    @classmethod
    def images_of_steps(cls, config: Config, steps: int, size: int = 0) -> float:
        """Return the compute of the server's ``steps`` on D_aux, of ``size`` images, in training images."""
        batch = config.correction.batch_size or size or config.auxiliary.size
        return steps * batch * cls.images_per_image

    @classmethod
    def num_corrections(cls, config: Config) -> int:
        """Return the largest possible number of corrections in a run."""
        return config.run.num_rounds
