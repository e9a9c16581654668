"""The metadata of a model card, which the Hugging Face hub reads, and what the card and they have in common."""

import math
import re
from dataclasses import dataclass

from huggingface_hub import EvalResult, ModelCardData

from fedddpm_app.algorithms import REGISTRY
from fedddpm_app.data.sources import DIGITS, HUB_IDS, LOCAL
from fedddpm_app.export.exported import ExportedRun, MetricRow
from fedddpm_app.export.markdown import number

_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
_OF_OTHERS = ("aux-", "membership-")  # metrics that are not of images of the model


@dataclass(frozen=True)
class CardFacts:
    """What a card says besides the run itself.

    Attributes
    ----------
    title : str
        The model's name.
    place : str
        What ``from_pretrained`` gets: the name of a folder, or a repository of the hub.
    license : str
        An identifier of the hub, such as ``apache-2.0``; empty for none.
    client : str
        The name of the client whose own model it is; empty for a global model.
    needs_package : bool
        Whether loading needs this package.
    has_samples : bool
        Whether there is a sheet of images.
    """

    title: str
    place: str
    license: str
    client: str
    needs_package: bool
    has_samples: bool


def metadata(run: ExportedRun, facts: CardFacts) -> str:
    """Return the YAML above a card; the results only of public data, as others cannot compare with other data."""
    config, public = run.config, public_data(run)
    conditional = config.data.class_conditional
    tags = [
        "diffusion",
        "ddpm",
        "federated-learning",
        "flower",
        "class-conditional" if conditional else "unconditional",
    ]
    if config.run.algorithm in REGISTRY:
        tags.append(config.run.algorithm)
    task = "unconditional-image-generation"
    results = [
        EvalResult(
            task_type="image-generation" if conditional else task,
            dataset_type=public,
            dataset_name=config.data.dataset,
            dataset_split=metric.reference,
            metric_type=metric.name,
            metric_name=f"{metric.name} ({sampler_of(metric)}, n = {metric.n}; real images: {number(metric.floor)})",
            metric_value=round(metric.value, 6),
        )
        for metric in of_model(run, facts.client)
        if public and not metric.name.startswith(_OF_OTHERS) and not math.isnan(metric.value)
    ]
    data = ModelCardData(
        library_name="diffusers",
        tags=tags,
        license=facts.license or None,
        pipeline_tag=None if conditional else task,
        datasets=[public] if "/" in public else None,
        model_name=facts.title if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def public_data(run: ExportedRun) -> str:
    """Return the id of data that others can get; empty for a folder."""
    name = run.config.data.dataset
    if name == DIGITS or name in HUB_IDS:
        return HUB_IDS.get(name, name)
    return name if not name.startswith(LOCAL) and _HUB_ID.fullmatch(name) else ""


def of_model(run: ExportedRun, client: str) -> list[MetricRow]:
    """Return the metrics of the exported model: of a client's own one, its values."""
    if not client:
        return run.metrics
    return [metric.of(client) for metric in run.metrics if client in metric.by_client]


def sampler_of(metric: MetricRow) -> str:
    """Return the sampler of a metric and its steps."""
    return f"{metric.sampler}, {metric.steps} steps" if metric.steps else "–"
