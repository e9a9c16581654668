"""The noisy gradients of a private training (DP-SGD), by Opacus, for the loop of ``trainer``.

    Poisson     each example takes part in a step with probability q, so batches differ in size and may be empty
    Example i   g_i = 1/k sum over k draws of (t, noise) of the gradient of its loss
    Clip        g_i <- g_i min(1, C / ||g_i||), and 0 if it is not finite
    Noise       g = (sum_i g_i + N(0, sigma^2 C^2 I)) / (q n)

Abadi et al. 2016 (https://arxiv.org/abs/1607.00133), Algorithm 1; the k draws, which cost time but no privacy, are the
noise multiplicity of Dockhorn et al. 2023 (DPDM, https://arxiv.org/abs/2210.09929), section 3.2. Symbols: C -> clip,
sigma -> noise_multiplier, q -> sample_rate, k -> multiplicity, n -> num_examples.

The loss must be a mean over the batch of terms of one example each: a loss or a layer that mixes examples has no
gradient per example. Layers with buffers, such as batch normalisation, are refused by Opacus. The first batch of a
training is checked: its gradients per example must have the gradient of the batch as their mean, and stay the same
beside other examples.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fedddpm_app.config import ConfigError
from fedddpm_app.training.batches import poisson_batches
from fedddpm_app.training.privacy import Privacy
from fedddpm_app.training.task import Batch, TrainingData

BYTES_IN_MEMORY = 2**30  # of gradients per example; a larger batch is split
_TOLERANCE = 0.05  # of the mean of the gradients per example; bfloat16 needs the most


class PrivateGradients:
    """Sets the noisy gradient of a step; a context manager, which leaves the model as it was.

    Parameters
    ----------
    model : nn.Module
        In training mode; its layers get Opacus's hooks.
    optimizer : torch.optim.Optimizer
        Of the model's parameters; it is not stepped.
    data : TrainingData
        The examples.
    privacy : Privacy
        The mechanism.
    order : torch.Generator
        Chooses the examples; on the CPU.
    noise : torch.Generator
        The noise of the gradients; on the model's device.
    micro_batch : int, optional
        Examples whose gradients are in memory together; by default as many as ``BYTES_IN_MEMORY`` holds.
    draws : torch.Generator, optional
        The generator that the loss draws from.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: TrainingData,
        privacy: Privacy,
        order: torch.Generator,
        noise: torch.Generator,
        micro_batch: int = 0,
        draws: torch.Generator | None = None,
    ) -> None:
        from opacus.grad_sample import GradSampleHooks
        from opacus.optimizers import DPOptimizer

        self._data, self._privacy, self._streams = data, privacy, RandomStreams(data.device, draws)
        self._named: dict[str, Any] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        size = sum(p.numel() * p.element_size() for p in self._named.values()) * min(2, privacy.multiplicity)
        self._micro_batch = micro_batch or max(1, BYTES_IN_MEMORY // size)
        self._batches = poisson_batches(len(data), privacy.sample_rate, order, data.device)
        self._is_checked = False
        self._loss: Tensor | None = None
        self._contiguous = [
            module.register_forward_pre_hook(_contiguous)
            for module in model.modules()
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        ]
        try:
            self._hooks = GradSampleHooks(model)
        except NotImplementedError as error:
            self._remove_own_hooks()
            raise ConfigError(
                f"a private training cannot clip the gradients of single examples of this model ({error}): use "
                "layers without buffers, such as GroupNorm in the place of BatchNorm."
            ) from error
        self._optimizer = DPOptimizer(
            optimizer,
            noise_multiplier=privacy.noise_multiplier,
            max_grad_norm=privacy.clip,
            expected_batch_size=privacy.sample_rate * len(data),
            generator=noise,
            secure_mode=privacy.secret,
        )

    def __enter__(self) -> "PrivateGradients":
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.cleanup()
        self._remove_own_hooks()
        for parameter in self._named.values():
            del parameter.summed_grad

    def next(self, loss_of: Callable[[Batch], Tensor]) -> Tensor:
        """Set the gradients of the next step, and return its mean loss, which is not private.

        ``loss_of`` returns the mean loss of a batch; it is called for each part of the batch and each draw. An empty
        batch has the loss of the step before.
        """
        losses: list[Tensor] = []
        index = next(self._batches)
        parts = torch.split(index, self._micro_batch)
        for place, part in enumerate(parts):
            self._optimizer.zero_grad(set_to_none=True)
            losses += [loss * len(part) / max(1, len(index)) for loss in self._sample(part, loss_of)]
            self._optimizer.signal_skip_step(do_skip=place < len(parts) - 1)
            self._optimizer.pre_step()
        if losses:
            self._loss = torch.stack(losses).sum() / self._privacy.multiplicity
        return torch.zeros((), device=index.device) if self._loss is None else self._loss

    def _sample(self, part: Tensor, loss_of: Callable[[Batch], Tensor]) -> list[Tensor]:
        """Set ``grad_sample`` of every parameter, (B, ...): the mean over the draws; return the loss of each draw."""
        draws = self._privacy.multiplicity if len(part) else 0
        batch, losses, sums = self._data.batch(part) if draws else None, [], dict[str, Tensor]()
        for _ in range(draws):
            before = self._streams.state() if not self._is_checked else None
            loss = _backward(loss_of, batch)
            if before is not None:
                self._check_mean(len(part))
                self._check_alone(part, loss_of, before)
            for name, parameter in self._named.items():
                if parameter.grad_sample is not None:
                    found = parameter.grad_sample.to(parameter.dtype)
                    sums[name] = sums[name].add_(found) if name in sums else found
                parameter.grad_sample = parameter.grad = None
            losses.append(loss)
        _drop_infinite(sums)
        for name, parameter in self._named.items():
            total = sums[name] if name in sums else parameter.new_zeros((len(part), *parameter.shape))
            parameter.grad_sample = total / draws if draws > 1 else total
        return losses

    def _check_mean(self, size: int) -> None:
        """Raise ``ConfigError`` if the gradients per example do not have the batch's gradient as their mean."""
        for name, parameter in self._named.items():
            whole = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found = parameter.grad_sample
            complete = found is None or (isinstance(found, Tensor) and len(found) == size)
            mean = found.mean(0) if complete and found is not None else torch.zeros_like(whole)
            if not complete or (mean - whole).norm() > _TOLERANCE * whole.norm() + 1e-5:
                raise ConfigError(
                    f"a private training needs the gradient of each example, but those of {name} do not have the "
                    "batch's gradient as their mean: the loss must be a mean of terms of one example each, and the "
                    "model must use its parameters through their own layers."
                )

    def _check_alone(self, part: Tensor, loss_of: Callable[[Batch], Tensor], before: Sequence[Tensor]) -> None:
        """Raise ``ConfigError`` if the gradients of half a batch change with the images of the other half.

        ``before`` is the state of the random streams before the gradients of ``part``. A batch of one shows nothing.
        """
        if len(part) < 2:
            return
        self._is_checked = True
        kept, half = {name: (p.grad, p.grad_sample) for name, p in self._named.items()}, len(part) // 2
        for stays, index in (
            (slice(half), torch.cat([part[:half], part[:1].expand(len(part) - half)])),
            (slice(half, None), torch.cat([part[-1:].expand(half), part[half:]])),
        ):
            with self._streams.again_from(before):
                self._optimizer.zero_grad(set_to_none=True)
                _backward(loss_of, self._data.batch(index))
            for name, parameter in self._named.items():
                if kept[name][1] is not None:
                    _check_same(kept[name][1][stays], parameter.grad_sample[stays], name)
        for name, parameter in self._named.items():
            parameter.grad, parameter.grad_sample = kept[name]

    def _remove_own_hooks(self) -> None:
        for handle in self._contiguous:
            handle.remove()


class RandomStreams:
    """What a loss draws from: torch's own generators, such as for dropout, and one that it was given."""

    def __init__(self, device: torch.device, generator: torch.Generator | None) -> None:
        self._device, self._generator = device, generator

    def state(self) -> list[Tensor]:
        """Return the state of all."""
        own = [torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else []
        return [torch.get_rng_state(), *([self._generator.get_state()] if self._generator else []), *own]

    @contextmanager
    def again_from(self, state: Sequence[Tensor]) -> Iterator[None]:
        """Draw from an earlier state in the body, and continue after it as if nothing had been drawn."""
        now = self.state()
        self._set(state)
        yield
        self._set(now)

    def _set(self, state: Sequence[Tensor]) -> None:
        first, *others = state
        torch.set_rng_state(first)
        if self._generator:
            self._generator.set_state(others.pop(0))
        if others:
            torch.cuda.set_rng_state(others[0], self._device)


def _backward(loss_of: Callable[[Batch], Tensor], batch: Batch) -> Tensor:
    """Set the gradients of a batch, and return its loss."""
    loss = loss_of(batch)
    with warnings.catch_warnings():  # torch warns of the hook on the layer that gets the images
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach()


def _check_same(alone: Tensor, beside_others: Tensor, name: str) -> None:
    """Raise ``ConfigError`` if the gradients of the same examples differ."""
    if (alone - beside_others).norm() > _TOLERANCE * alone.norm() + 1e-5:
        raise ConfigError(
            f"a private training needs gradients of single examples, but those of {name} depend on the other images of "
            "the batch: the loss and the layers must treat each example alone."
        )


def _drop_infinite(gradients: Mapping[str, Tensor]) -> None:
    """Set the gradients of an example with infinite or NaN ones to 0, in place: no factor could clip them.

    A sum takes a tenth of the time of a look at each value. It is finite if and only if these are, except for values so
    large that it overflows: their norm does too, so that clipping would make them 0 as well.
    """
    finite = [each.reshape(len(each), -1).sum(1).isfinite() for each in gradients.values()]
    good = torch.stack(finite).all(0) if finite else torch.ones(0, dtype=torch.bool)
    if not good.all():
        for each in gradients.values():
            each[~good] = 0.0


def _contiguous(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return a convolution's input in the default layout.

    For another one, such as that of a transposed attention, Opacus 1.6 reads the wrong pixels, also of other examples.
    """
    return tuple(each.contiguous() if isinstance(each, Tensor) else each for each in inputs)
