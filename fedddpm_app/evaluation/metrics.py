"""A metric, with all information that a reader needs to compare it."""

import dataclasses
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

CAVEAT = "; "  # between the caveats of a note
OF_THE_FLOOR = "the floor compares"  # how a caveat begins that is about the floor, not about the value
LEFT_OUT = "left_out"  # in the details of a mean over clients: models that generate no finite images

# What a better value is, by the first word of a metric's name.
BETTER = {
    **dict.fromkeys(("fid", "fd", "kid", "kd", "class", "memorized", "aux", "membership"), "lower"),
    **dict.fromkeys(("inception", "score", "precision", "recall", "density", "coverage"), "higher"),
}


@dataclass(frozen=True)
class SamplingInfo:
    """The settings by which images were generated.

    Attributes
    ----------
    sampler : str
        As ``eval-sampler``, with ``ddim-eta`` if it is not 0; "pipeline" for the sampler of a diffusers pipeline.
    steps : int
        Denoising steps.
    weights : str
        ``ema`` or ``raw`` weights of the global model; ``pretrained`` for the clients' own models, which generate the
        images together; ``stored`` for the weights of a pipeline folder.
    """

    sampler: str
    steps: int
    weights: str


@dataclass(frozen=True)
class Metric:
    """One metric that compares generated images with real ones.

    Attributes
    ----------
    name : str
        Named after its features: ``fid`` only with the standard Inception-v3, otherwise for example ``fd-classifier``.
    value : float
        NaN if it is not defined; ``note`` then gives the reason.
    std : float or None
        The metric's own deviation: for a kernel distance over its subsets, for a score over its parts, and for a mean
        over clients' models over these models.
    n : int
        The number of generated images.
    reference, reference_n : str, int
        The split of real images, and the number of real images that were compared.
    reference_digest : str
        First 16 hex digits of the SHA-256 of that split.
    extractor, extractor_digest : str
        The extractor of the features that are compared; metrics with another digest come from another network.
    sampling : SamplingInfo
        The settings by which the images were generated.
    floor, floor_std : float
        The same metric between two disjoint sets of real images, which a perfect generator would reach: its mean and
        deviation over several divisions of these images.
    floor_n : int
        Images in the set that replaces the generated one; fewer than ``n`` if the data have no more.
    floor_reference_n : int
        Images in the other set.
    note : str
        Caveats about the value, joined by ``CAVEAT``; usually empty.
    details : dict
        More numbers of this metric.
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

    @property
    def better(self) -> str:
        """``lower`` or ``higher``; empty for a metric that ``BETTER`` does not have."""
        return BETTER.get(self.name.partition("-")[0], "")

    def to_dict(self) -> dict[str, object]:
        """Return the metric for JSON, with the fields of ``sampling`` among its own."""
        flat = {key: value for key, value in vars(self).items() if key not in ("sampling", "details")}
        return {**flat, "better": self.better, **dataclasses.asdict(self.sampling), **self.details}


def _notes_of_models(notes: Sequence[str]) -> list[str]:
    """Return each caveat that some models have, without its numbers, and for how many models it holds."""
    shorts = Counter(caveat.partition(":")[0] for note in notes for caveat in set(note.split(CAVEAT)) if caveat)
    return [f"{short} ({count} of {len(notes)} models)" for short, count in shorts.items()]


def mean_over_clients(metrics: Mapping[str, Sequence[Metric]], left_out: Sequence[str] = ()) -> list[Metric]:
    """Return the mean of each metric over the clients' models, with the deviation, the median and each model's value.

    Parameters
    ----------
    metrics : mapping of str to sequence of Metric
        By the model's name, the same metrics in the same order. The name of a global model is empty: its metrics are
        returned unchanged. Those of a single client's model are a mean over one client.
    left_out : sequence of str
        The names of models that generate no finite images; ``note`` and ``details`` name them.
    """
    if "" in metrics:
        return list(metrics[""])
    means = []
    for same in zip(*metrics.values(), strict=True):
        values = [metric.value for metric in same]
        known = [value for value in values if math.isfinite(value)]
        notes = _notes_of_models([metric.note for metric in same])
        notes += [f"without {', '.join(left_out)}, whose images are not finite"] if left_out else []
        means.append(
            dataclasses.replace(
                same[0],
                value=statistics.fmean(known) if known else math.nan,
                std=statistics.stdev(known) if len(known) > 1 else None,
                note=CAVEAT.join(filter(None, notes)),
                details={
                    "clients": values,
                    "client_names": [*metrics],
                    "median": statistics.median(known) if known else math.nan,
                    "client_details": [metric.details for metric in same],
                    **({LEFT_OUT: [*left_out]} if left_out else {}),
                },
            )
        )
    return means
