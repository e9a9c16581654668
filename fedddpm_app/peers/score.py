"""The score of generated images on the private data of a peer: their quality and their novelty.

Balan et al. 2024 (arXiv 2409.18245, PDFed): ``Q-N = (FD + 1000 V_C V_A R_C) / 2``, lower is better. FD is the Frechet
distance to held-out images of the peer, and the second term tells how much the generated images repeat its training
images, see ``novelty``.

Deviation: the paper's features (DINOv2 for FD, a contrastive network for the matches) need weights from elsewhere; here
one embedder serves both, and any function of images will do. FD depends on the embedder, and so does its weight beside
the second term, which is at most 1000: both are reported apart. With fewer than 2 d held-out or generated images of
d features each, the covariances are estimated badly or singular; ``frechet_distance`` is defined from two images on,
and biased upwards. Compare the scores of one peer, which have the same bias, for equally many generated images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedddpm_app.diffusion.images import to_uint8
from fedddpm_app.evaluation.distances import frechet_distance
from fedddpm_app.evaluation.extractors import Extractor
from fedddpm_app.peers.novelty import TrainingClass, Verifier, matches_of, similarity_of_distance

NOVELTY_FACTOR = 1000
LEAST = 2  # images, for a covariance

Embedder = Callable[[Tensor], Tensor]
"""From images, float32 in [-1, 1], shape (N, C, H, W), to features, floating point, shape (N, d), on any device."""


def embedder_of(extractor: Extractor) -> Embedder:
    """Return an extractor of the evaluation as an embedder; images are rounded to grey levels, as those of data are."""
    return lambda images: extractor(to_uint8(images)).vectors


@dataclass(frozen=True)
class Score:
    """What a peer finds in the samples of a submission.

    Attributes
    ----------
    distance : float
        FD >= 0 between the samples and the peer's held-out images.
    novelty : float
        ``1000 V_C V_A R_C``, in [0, 1000]; 0 if no sample is a confirmed match.
    num_candidates, num_confirmed : int
        Numbers of samples.
    matches : list of int
        The peer's own training image of each confirmed match, by its number; repeated if several samples match it.
    """

    distance: float
    novelty: float
    num_candidates: int
    num_confirmed: int
    matches: list[int]

    def value(self, with_novelty: bool = True) -> float:
        """Return Q-N, lower is better; without the novelty term it is half of the distance."""
        return (self.distance + (self.novelty if with_novelty else 0.0)) / 2


class PrivateScore:
    """Scores the samples of submissions on a peer's own images, whose features are computed once.

    Parameters
    ----------
    train : Tensor
        The peer's training images, float32 in [-1, 1], shape (M, C, H, W), M >= 1.
    labels : Tensor or None
        int64, shape (M,), to look for matches in the class of a sample only; None: all images are of one class.
    held_out : Tensor
        Images of the peer that are not trained on, as ``train``; at least two.
    embedder : callable
        The features in which images are compared.
    verifier : callable
        The similarity of candidate pairs.

    Raises
    ------
    ValueError
        If there are too few images, labels are not one for each image, or features are not finite vectors.
    """

    def __init__(
        self,
        train: Tensor,
        labels: Tensor | None,
        held_out: Tensor,
        embedder: Embedder,
        verifier: Verifier = similarity_of_distance,
    ) -> None:
        if not len(train) or len(held_out) < LEAST:
            raise ValueError(
                f"{len(train)} training and {len(held_out)} held-out images, but a score needs at least 1 and {LEAST}"
            )
        self._embedder, self._verifier = embedder, verifier
        self._held_out = self._embed(held_out)
        features = self._embed(train)
        self._labelled = labels is not None
        self._classes = {
            label: TrainingClass.of(index, features[index]) for label, index in _by_class(labels, len(train)).items()
        }

    def score(self, samples: Tensor, labels: Tensor | None) -> Score:
        """Return the score of samples.

        Parameters
        ----------
        samples : Tensor
            float32 in [-1, 1], shape (N, C, H, W), N >= 2.
        labels : Tensor or None
            int64, shape (N,), if the training images have labels, else None. A sample of a class that the peer has no
            training images of is no candidate.

        Raises
        ------
        ValueError
            If there are fewer than two samples, or labels do not fit the samples or the training images.
        """
        if len(samples) < LEAST:
            raise ValueError(f"a submission with {len(samples)} samples cannot be scored: at least {LEAST} are needed")
        if (labels is not None) != self._labelled:
            raise ValueError("give labels for both training images and samples, or for neither")
        generated = self._embed(samples)
        similarity = torch.full((len(samples),), torch.nan, dtype=torch.float64)
        train = torch.zeros(len(samples), dtype=torch.int64)
        for label, rows in _by_class(labels, len(samples)).items():
            if label in self._classes:
                own = self._classes[label]
                similarity[rows], place = own.best_matches(generated[rows], self._verifier)
                train[rows] = own.index[place]
        found = matches_of(similarity, train)
        return Score(
            distance=frechet_distance(generated, self._held_out),
            novelty=NOVELTY_FACTOR * found.confirmed_similarity * found.candidate_similarity * found.share,
            num_candidates=found.num_candidates,
            num_confirmed=len(found.confirmed),
            matches=found.confirmed,
        )

    def _embed(self, images: Tensor) -> Tensor:
        """Return features, float64, on the CPU."""
        features = self._embedder(images).detach().to("cpu", torch.float64)
        if features.ndim != 2 or len(features) != len(images) or not torch.isfinite(features).all():
            raise ValueError(
                f"the embedder gave features of shape {tuple(features.shape)} for {len(images)} images, or NaN or "
                "infinity: it must give a finite vector for each image"
            )
        return features


def _by_class(labels: Tensor | None, count: int) -> dict[int, Tensor]:
    """Return the numbers of the images of each class, int64, rising; one class, 0, without labels."""
    if labels is None:
        return {0: torch.arange(count)}
    labels = labels.cpu()
    if labels.shape != (count,):
        raise ValueError(f"labels of shape {tuple(labels.shape)} for {count} images: give one for each")
    return {label: (labels == label).nonzero().flatten() for label in sorted(set(labels.tolist()))}
