"""A metric, with all that a reader needs to compare it."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class SamplingInfo:
    """How generated images were drawn.

    Attributes
    ----------
    sampler : str
        As ``eval-sampler``; "pipeline" for a diffusers pipeline's own.
    steps : int
        Denoising steps.
    weights : str
        ``ema`` or ``raw`` weights of the global model; ``stored`` for those of a pipeline folder.
    """

    sampler: str
    steps: int
    weights: str


@dataclass(frozen=True)
class Metric:
    """One measure of generated images against real ones.

    Attributes
    ----------
    name : str
        Named after its features: ``fid`` only with the standard Inception-v3, else such as ``fd-classifier``.
    value : float
        NaN where ``note`` says why it cannot be told.
    std : float or None
        The deviation that the measure itself has: of a kernel distance over its subsets, of a score over its parts;
        of metrics that are a mean over clients' models, over these.
    n : int
        Generated images.
    reference, reference_n : str, int
        The split of real images compared with, and how many of them.
    reference_digest : str
        First 16 hex digits of the SHA-256 of that split.
    extractor, extractor_digest : str
        What the images are compared on; metrics of other digests are of other networks.
    drawing : SamplingInfo
        How the images were drawn.
    floor, floor_std : float
        The same metric between two sets of real images without a common one, what a perfect generator would get: its
        mean and deviation over several divisions of these images.
    floor_n : int
        Images of the set that stands for the generated one; fewer than ``n`` where the data have no more.
    floor_reference_n : int
        Images of the other set.
    note : str
        What to keep in mind with this value; mostly empty.
    details : dict
        More numbers of this measure.
    """

    name: str
    value: float
    std: float | None
    n: int
    reference: str
    reference_n: int
    reference_digest: str
    extractor: str
    extractor_digest: str
    sampling: SamplingInfo
    floor: float
    floor_std: float | None
    floor_n: int
    floor_reference_n: int
    note: str = ""
    details: dict[str, object] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """Return the metric for JSON, with the fields of ``sampling`` among its own."""
        flat = {key: value for key, value in vars(self).items() if key not in ("sampling", "details")}
        return {**flat, **dataclasses.asdict(self.sampling), **self.details}


def mean_over_clients(metrics: Sequence[Sequence[Metric]]) -> list[Metric]:
    """Return the mean of each metric over the clients' models, with their spread and the value of each.

    Parameters
    ----------
    metrics : sequence of sequence of Metric
        Of each client the same metrics in the same order; of a single model they are returned as they are.
    """
    if len(metrics) == 1:
        return list(metrics[0])
    means = []
    for same in zip(*metrics, strict=True):
        values = [metric.value for metric in same]
        known = [value for value in values if math.isfinite(value)]
        means.append(
            dataclasses.replace(
                same[0],
                value=statistics.fmean(known) if known else math.nan,
                std=statistics.stdev(known) if len(known) > 1 else None,
                note=next((metric.note for metric in same if metric.note), ""),
                details={"clients": values, "client_details": [metric.details for metric in same]},
            )
        )
    return means
