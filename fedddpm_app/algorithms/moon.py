"""MOON: Model-Contrastive Federated Learning.

Qinbin Li, Bingsheng He, Dawn Song. CVPR 2021. https://arxiv.org/abs/2103.16257, Algorithm 1 and equations (2), (3).

    Client i   w_i <- K local steps on L(v; D_i) + mu l_con(v) from w                          (3)
               l_con = -log( e^{sim(z, z_glob)/tau} / (e^{sim(z, z_glob)/tau} + e^{sim(z, z_prev)/tau}) ),
               its mean over the batch                                                               (2)
    Server     w <- aggregation of the w_i, as FedAvg

z, z_glob, z_prev: the representation of the same input under the local model v, the global model w, and the client's
local model of its last round. Symbols: mu -> moon-mu, tau -> moon-temperature, sim -> cosine similarity.
Deviations: MOON was designed for classifiers, with a projection head on the encoder. [our reading] for a UNet, z is the
output of ``moon-representation`` (the middle block), averaged over its pixels, for the same (x_t, t); there is no
projection head. In a client's first round z_prev = z_glob: the term then has no gradient, and it is left out.
"""

import copy
import functools
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F  # noqa: N812
from flwr.serverapp import Grid
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedddpm_app import weights as weights_module
from fedddpm_app.config import Config, ConfigError, DataConfig, UNetConfig
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.federation.cost import FORWARD
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.training.hooks import TrainingHook, TrainResult
from fedddpm_app.training.task import Batch
from fedddpm_app.weights import Weights

PREVIOUS = "previous"


class MoonHook(TrainingHook):
    """Pulls the representation towards the global model's and away from that of the client's last model."""

    keeps_state = True
    _views: "list[Representation] | None" = None

    @classmethod
    def training_images(cls, config: Config, num_examples: int, steps: int, *, is_first: bool) -> float:
        """Count the passes of the two frozen models, which end at the representation."""
        images = super().training_images(config, num_examples, steps, is_first=is_first)
        if is_first or config.moon.mu == 0:
            return images
        return images * (1.0 + 2.0 * FORWARD * share_of_pass(config.unet, config.data, config.moon.representation))

    @classmethod
    def why_not_private(cls, config: Config) -> str:
        """Return that its term, which compares outputs for a client's images, is not clipped per example."""
        return "its contrastive term depends on the images, and is added to the loss of a whole batch"

    def on_start(self, model: nn.Module) -> None:
        """Register hooks on the model and on frozen copies of the global and the previous model."""
        previous = self.round.state.get(PREVIOUS)
        if previous is None or self.config.moon.mu == 0:
            return
        name = self.config.moon.representation
        frozen = [_frozen_copy(model, weights) for weights in (self.round.global_weights, previous)]
        self._views = [Representation(each, name) for each in (model, *frozen)]

    def add_to_loss(self, loss: Tensor, model: nn.Module, batch: Batch) -> Tensor:
        """Add mu l_con (3); the frozen models receive the arguments of the model's last call."""
        if self._views is None:
            return loss
        local, *others = self._views
        if local.arguments is None:
            raise ConfigError(
                'algorithm = "moon" compares outputs of the model, but the loss never calls the model: call it in the '
                "loss, or set moon-mu = 0."
            )
        z_glob, z_prev = (view.of(local.arguments) for view in others)
        settings = self.config.moon
        return loss + settings.mu * contrastive_loss(local.value, z_glob, z_prev, settings.temperature)

    def on_end(self, result: TrainResult, full_gradient: Callable[[Weights], Weights]) -> None:
        """Keep the local model for the next round."""
        self.kept[PREVIOUS] = result.weights

    def close(self) -> None:
        """Remove the hooks."""
        for view in self._views or []:
            view.close()


class Moon(FederatedStrategy):
    """MOON's server half, which is FedAvg's."""

    hook = MoonHook
    key_prefix = "moon-"

    @classmethod
    def keys_without_effect(cls, config: Config) -> dict[str, str]:
        """Add the keys of the contrastive term, if it is absent."""
        absent = (
            {"moon-temperature": "moon-mu = 0", "moon-representation": "moon-mu = 0"} if config.moon.mu == 0 else {}
        )
        return super().keys_without_effect(config) | absent

    def prepare(self, grid: Grid, weights: Weights) -> Weights:
        """Check on the server that the model has the representation."""
        _submodule(self.task.create_model(), self.config.moon.representation)
        return weights


def contrastive_loss(z: Tensor, z_glob: Tensor, z_prev: Tensor, temperature: float) -> Tensor:
    """Return l_con (2), a scalar, of representations of shape (B, D)."""
    towards = F.cosine_similarity(z, z_glob, dim=1) / temperature
    away = F.cosine_similarity(z, z_prev, dim=1) / temperature
    return F.softplus(away - towards).mean()


class Representation:
    """The output of a submodule of a model, averaged over pixels, as shape (B, D).

    Parameters
    ----------
    model : nn.Module
        Has hooks until ``close``.
    name : str
        The name of the submodule; empty for the model itself.

    Attributes
    ----------
    value : Tensor
        The representation in the model's last call.
    arguments : tuple or None
        Positional and keyword arguments of the model's last call; None before it.
    """

    value: Tensor

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.arguments: tuple[tuple[object, ...], dict[str, object]] | None = None
        self._name = name
        self._stops = False
        self._handles = [
            model.register_forward_pre_hook(self._take_arguments, with_kwargs=True),
            _submodule(model, name).register_forward_hook(self._take_output),
        ]

    @torch.no_grad()
    def of(self, arguments: tuple[tuple[object, ...], dict[str, object]]) -> Tensor:
        """Return the representation for given arguments; the model stops at the submodule.

        Raises
        ------
        ConfigError
            If the model does not call the submodule, or the submodule's output has no tensor.
        """
        self._stops = True
        try:
            self.model(*arguments[0], **arguments[1])
        except _ReachedError:
            return self.value
        finally:
            self._stops = False
        raise ConfigError(
            f'moon-representation = "{self._name}" is a submodule that the model never calls: use another submodule.'
        )

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _take_arguments(self, _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        self.arguments = (args, kwargs)

    def _take_output(self, _: nn.Module, __: object, output: object) -> None:
        self.value = _pooled(self._first_tensor(output))
        if self._stops:
            raise _ReachedError

    def _first_tensor(self, output: object) -> Tensor:
        values = output.values() if isinstance(output, dict) else output
        for value in values if isinstance(values, Iterable) and not isinstance(values, Tensor) else [values]:
            if isinstance(value, Tensor):
                return value
        raise ConfigError(
            f'moon-representation = "{self._name}" is a submodule whose output has no tensor: use another submodule.'
        )


def _pooled(tensor: Tensor) -> Tensor:
    """Average (B, C, ...) over its positions, or (B, T, D) over its tokens; return (B, D) in new memory."""
    if tensor.dim() > 3:
        return tensor.flatten(2).mean(2)
    if tensor.dim() == 3:
        return tensor.mean(1)
    return tensor.reshape(1, -1).clone() if tensor.dim() < 2 else tensor.clone()


class _ReachedError(Exception):
    """The representation is known: the rest of the model need not run."""


def _submodule(model: nn.Module, name: str) -> nn.Module:
    found: nn.Module | None = dict(model.named_modules()).get(name)
    if found is None:
        choices = [*(child for child, _ in model.named_children()), "an empty text for its output"]
        raise ConfigError(
            f'moon-representation = "{name}" is not a submodule of the model: use {" or ".join(choices)}.'
        )
    if type(found).forward is nn.Module.forward and not name:
        raise ConfigError(
            f'algorithm = "moon" compares outputs of the model, but {type(model).__name__} has no method "forward": '
            "add it, and call the model in the loss."
        )
    if type(found).forward is nn.Module.forward:
        children = " or ".join(f"{name}.{child}" for child, _ in found.named_children())
        raise ConfigError(
            f'moon-representation = "{name}" is a list of submodules, which the model never calls: use {children}.'
        )
    return found


@functools.lru_cache(maxsize=8)
def share_of_pass(unet: UNetConfig, data: DataConfig, name: str) -> float:
    """Return the share of a UNet's forward pass, in operations, up to a submodule; 1 if the UNet never calls it.

    No memory is allocated for the model.
    """
    with torch.device("meta"):
        model = create_unet(unet, data, seed=0)
        images, zero = torch.empty(1, *data.image_shape), torch.zeros(1, dtype=torch.int64)
        keywords: dict[str, object] = {"class_labels": zero} if data.class_conditional else {}
    try:
        view = Representation(model, name)
        with FlopCounterMode(display=False) as part:
            view.of(((images, zero), keywords))
    except ConfigError:  # the model of another task may have this submodule
        return 1.0
    view.close()
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        model(images, zero, **keywords)
    return float(part.get_total_flops() / whole.get_total_flops())


def _frozen_copy(model: nn.Module, weights: Weights) -> nn.Module:
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    weights_module.load_into(frozen, weights)
    return frozen
