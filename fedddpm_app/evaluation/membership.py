"""Membership inference: whether an attacker can say which images a model was trained on.

An attack gives each image a score, higher for a likelier member. Threshold attack on the denoising loss: Matsumoto et
al. 2023, arXiv 2302.03262. Likelihood ratio with reference models: Carlini et al. 2022, arXiv 2112.03570 (LiRA), with
the losses of the reference models as normal distributions. Distance to generated images: Hilprecht et al. 2019, arXiv
1906.03006.

The area under the ROC curve (AUC) is 0.5 for a guess. The true-positive rate at 1 % false positives says how many
members are found almost surely: a mean hides them (Carlini et al. 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from torch import Tensor, nn

from fedddpm_app.diffusion.objective import DenoisingObjective
from fedddpm_app.evaluation.memorization import nearest_training
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.task import TrainingData

FALSE_POSITIVES = 0.01
NOISE_LEVELS = (0.02, 0.05, 0.1, 0.2, 0.4)  # t, as parts of T; high t says little about a single image
_BATCH_SIZE = 256
_RESAMPLES = 500
_LEAST_DEVIATION = 1e-6

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Attack:
    """The success of an attack.

    Attributes
    ----------
    name : str
        The attack.
    auc, tpr : float
        The area under the ROC curve, and the true-positive rate at ``FALSE_POSITIVES``.
    auc_interval, tpr_interval : tuple of float
        95 %, by resampling of members and of others.
    members, others : list of float
        The scores.
    """

    name: str
    auc: float
    auc_interval: tuple[float, float]
    tpr: float
    tpr_interval: tuple[float, float]
    members: Scores
    others: Scores

    def to_dict(self) -> dict[str, object]:
        """Return the attack without its scores."""
        return {
            "attack": self.name,
            "auc": self.auc,
            "auc_interval": [*self.auc_interval],
            "tpr_at_1_percent": self.tpr,
            "tpr_interval": [*self.tpr_interval],
            "members": len(self.members),
            "others": len(self.others),
        }


def measure(name: str, members: Scores, others: Scores, seed: int) -> Attack:
    """Return the success of an attack, given the scores of members and of other images (at least 2 of each).

    Raises
    ------
    ValueError
        If there are fewer scores, or one is NaN.
    """
    if min(len(members), len(others)) < 2 or np.isnan([*members, *others]).any():
        raise ValueError(f"{len(members)} scores of members and {len(others)} of others: at least 2 finite ones each")
    random = np.random.default_rng(derive_seed(seed, "audit-resamples"))
    aucs, rates = [], []
    for _ in range(_RESAMPLES):
        drawn = random.choice(members, len(members)), random.choice(others, len(others))
        aucs.append(auc_of(*drawn))
        rates.append(true_positives(*drawn))
    return Attack(
        name,
        auc_of(members, others),
        _interval(aucs),
        true_positives(members, others),
        _interval(rates),
        np.asarray(members, dtype=np.float64),
        np.asarray(others, dtype=np.float64),
    )


def auc_of(members: Scores, others: Scores) -> float:
    """Return the probability that a member has a higher score than another image; equal scores count one half."""
    ranks = rankdata(np.concatenate([members, others]))
    above = ranks[: len(members)].sum() - len(members) * (len(members) + 1) / 2
    return float(above / (len(members) * len(others)))


def true_positives(members: Scores, others: Scores, rate: float = FALSE_POSITIVES) -> float:
    """Return the share of members above a threshold that at most a share ``rate`` of the others is above."""
    threshold = np.sort(others)[::-1][int(rate * len(others))]
    return float((members > threshold).mean())


def roc_of(members: Scores, others: Scores) -> tuple[Scores, Scores]:
    """Return false- and true-positive rates, rising, for each threshold."""
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    false = 1 - np.searchsorted(np.sort(others), thresholds) / len(others)
    true = 1 - np.searchsorted(np.sort(members), thresholds) / len(members)
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


# ---- scores ----------------------------------------------------------------------------------


@torch.no_grad()
def losses_of(model: nn.Module, objective: DenoisingObjective, data: TrainingData, draws: int, seed: int) -> Tensor:
    """Return the denoising loss of each image at each of ``NOISE_LEVELS``, float64, shape (N, levels).

    It is the mean over ``draws`` noises; equal seeds give image k the same ones, whatever the model.
    """
    was_training, device = model.training, data.device
    model.eval()
    generator, rows = torch.Generator().manual_seed(derive_seed(seed, "audit-noise")), []
    levels = torch.tensor([int(level * objective.num_timesteps) for level in NOISE_LEVELS])
    for index in torch.split(torch.arange(len(data)), _BATCH_SIZE):
        batch, found = data.batch(index.to(device)), torch.zeros(len(index), len(levels), dtype=torch.float64)
        for _ in range(draws):
            noise = torch.randn(batch.images.shape, generator=generator).to(device)
            for column, level in enumerate(levels):
                t = level.expand(len(index)).to(device)
                found[:, column] += objective.losses(model, batch, t, noise).double().cpu()
        rows.append(found / draws)
    model.train(was_training)
    return torch.cat(rows) if rows else torch.empty(0, len(levels), dtype=torch.float64)


def by_threshold(losses: Tensor) -> Scores:
    """Return the scores of the threshold attack: the mean over the noise levels of the negative log losses."""
    return -log_losses(losses)


def log_losses(losses: Tensor) -> Scores:
    """Return each image's mean of log losses over the noise levels, so that no level outweighs the others."""
    found: Scores = losses.clamp(min=1e-12).log().mean(1).numpy()
    return found


def by_likelihood_ratio(losses: Scores, references: Sequence[Scores], inside: Sequence[NDArray[np.bool_]]) -> Scores:
    """Return the scores of LiRA: how much likelier an image's loss is if it was trained on.

    ``log N(l; mu - g, s) - log N(l; mu, s)``, where mu is an image's mean loss under reference models that have not
    seen it, and g the gap by which the loss is lower under those that have. With few reference models, a gap of each
    image's own would be noise: so g is that of all images together, as is the deviation s. All reference models then
    say something of mu, those that have seen the image with g added.

    Parameters
    ----------
    losses : array
        Log losses of the model, shape (N,).
    references : sequence of array
        Of each reference model, shape (N,).
    inside : sequence of array
        By reference model, which images it was trained on: bool, shape (N,).

    Raises
    ------
    ValueError
        Without two reference models.
    """
    if len(references) < 2:
        raise ValueError(f"{len(references)} reference models: at least 2 are needed")
    values, seen = np.stack(references), np.stack(inside)
    gap = _gap(values, seen)
    without = values + np.where(seen, gap, 0.0)
    mean = without.mean(0)
    deviation = float(np.sqrt(((without - mean) ** 2).sum() / (without.size - without.shape[1])))
    deviation = max(deviation, _LEAST_DEVIATION)
    found: Scores = norm.logpdf(losses, mean - gap, deviation) - norm.logpdf(losses, mean, deviation)
    return found


def _gap(values: Scores, seen: NDArray[np.bool_]) -> float:
    """Return the mean over images of the loss without membership less that with it; a small positive one at least."""
    count = np.stack([seen.sum(0), (~seen).sum(0)])
    sums = np.stack([np.where(chosen, values, 0.0).sum(0) for chosen in (seen, ~seen)])
    both = (count > 0).all(0)
    gaps = sums[1, both] / count[1, both] - sums[0, both] / count[0, both]
    return max(float(gaps.mean()) if both.any() else 0.0, _LEAST_DEVIATION)


def by_distance(images: Tensor, generated: Tensor, k: int, *, mirrored: bool = False) -> Scores:
    """Return the scores of uint8 images (N, C, H, W): how abnormally near a generated one is, see ``Neighbours``.

    ``mirrored``: the models were also trained on mirror images, so that the nearer one of an image and its mirror image
    counts.
    """
    views = (images, images.flip(-1)) if mirrored else (images,)
    ratios = [nearest_training(view, generated, k).ratio for view in views]
    found: Scores = -torch.stack(ratios).amin(0).double().numpy()
    return found


def _interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
