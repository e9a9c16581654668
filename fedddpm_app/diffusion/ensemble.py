"""Images of an ensemble: of one model, or of several models that generate a part of the images each.

Image k starts from seed k whichever model generates it, so that images of different ensembles can be compared.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from fedddpm_app import weights as weights_module
from fedddpm_app.apportion import Shares
from fedddpm_app.config import ConfigError
from fedddpm_app.diffusion.pipelines import PIPELINE, find_pipelines, load_pipeline, pipeline_batches
from fedddpm_app.diffusion.sampling import sample_batches
from fedddpm_app.disk.bounded import read_json
from fedddpm_app.weights import Weights

SHARES = "shares.json"  # in the folder of several pipelines that generate images together
Sample = Callable[[int, list[int], Tensor | None], Iterator[Tensor]]


@dataclass(frozen=True)
class Ensemble:
    """The weights of the models, by number, and their shares of the images."""

    weights: Mapping[int, Weights]
    shares: Shares

    @classmethod
    def of_one(cls, weights: Weights) -> "Ensemble":
        """Return the ensemble of a single model."""
        return cls({0: weights}, Shares({0: 1}))

    def sample(
        self,
        model: nn.Module,
        scheduler: DDPMScheduler,
        *,
        seeds: Sequence[int],
        labels: Tensor | None = None,
        **options: Any,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield indices and images of one batch after the other, see ``ensemble_batches``.

        Parameters
        ----------
        model : nn.Module
            Takes the weights of one model after the other.
        scheduler, seeds, labels, **options
            As of ``sample_batches``.
        """

        def of_model(number: int, own_seeds: list[int], own_labels: Tensor | None) -> Iterator[Tensor]:
            weights_module.load_into(model, self.weights[number])
            yield from sample_batches(model, scheduler, seeds=own_seeds, labels=own_labels, **options)

        return ensemble_batches(self.shares, seeds, labels, of_model)


def ensemble_batches(
    shares: Shares, seeds: Sequence[int], labels: Tensor | None, sample: Sample
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the indices (int64, shape (B,)) and the images (uint8, shape (B, C, H, W)) of each batch, model by model.

    Parameters
    ----------
    shares : Shares
        The models' parts.
    seeds : sequence of int
        One per image.
    labels : Tensor or None
        int64, one per image, for class-conditional models.
    sample : callable
        Yields the images of a model in batches, given its number, the seeds and the labels of its images.
    """
    for number, index in shares.assign(len(seeds), labels).items():
        done = 0
        own_labels = None if labels is None else labels[index]
        for images in sample(number, [seeds[k] for k in index.tolist()], own_labels):
            yield index[done : done + len(images)], images
            done += len(images)


def in_order(batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Return all images of at least one batch, in the order of their indices."""
    found = list(batches)
    return torch.cat([images for _, images in found])[torch.cat([index for index, _ in found]).argsort()]


@dataclass(frozen=True)
class PipelineEnsemble:
    """Pipelines in folders that generate images together, usually one.

    Attributes
    ----------
    folders : mapping of int to Path
        By the model's number.
    shares : Shares
        The models' parts.
    of_clients : bool
        Whether it consists of the clients' models.
    """

    folders: Mapping[int, Path]
    shares: Shares
    of_clients: bool = False

    def first(self) -> Any:
        """Load the first pipeline, whose sampler and classes are those of all."""
        return load_pipeline(next(iter(self.folders.values())))

    def sample(
        self, device: torch.device, *, seeds: Sequence[int], labels: Tensor | None, **options: Any
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield indices and images of one batch after the other, see ``ensemble_batches`` and ``pipeline_batches``."""

        def of_model(number: int, own_seeds: list[int], own_labels: Tensor | None) -> Iterator[Tensor]:
            pipeline = load_pipeline(self.folders[number]).to(device)
            yield from pipeline_batches(pipeline, seeds=own_seeds, labels=own_labels, **options)

        return ensemble_batches(self.shares, seeds, labels, of_model)


def find_ensembles(folder: Path) -> dict[str, PipelineEnsemble]:
    """Return what generates images in a run directory or pipeline folder, by name; empty without pipelines.

    The name is empty for a single pipeline and for pipelines with shares, otherwise it is the client's.
    """
    folders = find_pipelines(folder)
    if folders and "" not in folders:
        shares = _read_shares(folder, [*folders])
        if shares is not None:
            return {"": PipelineEnsemble({number_of(name): path for name, path in folders.items()}, shares, True)}
    return {name: PipelineEnsemble({0: path}, Shares({0: 1})) for name, path in folders.items()}


def name_of(number: int) -> str:
    """Return the name of a client's model."""
    return f"client-{number:04d}"


def number_of(name: str) -> int:
    """Return the number of the client that a name is about."""
    return int(name.removeprefix("client-"))


def _read_shares(folder: Path, names: Sequence[str]) -> Shares | None:
    """Return the shares of the pipelines in a folder; None if each of them is a generator of its own."""
    path = (folder / PIPELINE if (folder / PIPELINE).is_dir() else folder) / SHARES
    if not path.is_file():
        return None
    shares = Shares()
    try:
        shares.load_state_dict(read_json(path))
        if sorted(shares.num_examples) != sorted(number_of(name) for name in names):
            raise ValueError(f"it is about the models {sorted(shares.num_examples)}")
        counts = [count for each in shares.label_counts.values() for count in each]
        if min(shares.num_examples.values()) < 1 or min(counts, default=0) < 0:
            raise ValueError("a model has no examples")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} does not fit the {len(names)} pipelines beside it ({error}): restore it, or remove it to use each "
            "pipeline alone."
        ) from error
    return shares
