"""What a model card says about privacy: who saw what in the run's mode, which budgets, which copies were found."""

import math

from scipy.stats import binomtest

from fedddpm_app.algorithms import REGISTRY
from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.config import Config
from fedddpm_app.export.exported import ExportedRun, MetricRow
from fedddpm_app.federation.description import AlgorithmDescription

_PHASES = {
    "pretrain": "of single training images, for a client's pretraining",
    "train": "of single training images, for all local rounds of a client",
    "total": "of single training images, for everything that a client sent",
    "client-dp": "of whole clients, for those who get the global model and not for the server",
}
_COPIES = "memorized-share"
_ATTACKS = {
    "membership-final": "a threshold on the loss",
    "membership-final-likelihood-ratio": "the likelihood ratio",
}


def privacy_notes(run: ExportedRun, client: str) -> list[str]:
    """Return the sentences of a card; ``client`` names the client whose own model is exported, if it is one's."""
    config = run.config
    notes = [
        "The clients were nodes of a deployment, each with its own images."
        if run.is_deployed
        else "The run was a simulation: the images of all clients were on one computer. The next sentences say what "
        "the server and the clients of such a run see in a deployment."
    ]
    if client:
        notes.append("This is the model of one client, which was not averaged with those of the others.")
    notes += who_saw_what(config)
    notes += [
        f"Differential privacy {_PHASES[phase]}: epsilon = {epsilon:.4g} at delta = {delta:.3g}."
        for phase, (epsilon, delta) in run.epsilons.items()
    ]
    if not run.epsilons:
        notes.append("There was no budget of differential privacy, and so there is no guarantee.")
    elif not config.dp.dp_secret_noise:
        notes.append("The noise derives from the run's seed: the guarantee does not hold for those who know it.")
    return [*notes, *_measured(run.metrics, client)]


def who_saw_what(config: Config) -> list[str]:
    """Return sentences about what left the clients in a run, as docs/privacy.md has it."""
    name = config.run.algorithm
    if name not in REGISTRY:
        return ["The algorithm is not one of the package: its own code says what clients send."]
    return _seen(REGISTRY[name], config)


def _seen(kind: type[AlgorithmDescription], config: Config) -> list[str]:
    notes, name = [], config.run.algorithm
    if name == "centralized":
        return ["All images were read in one place: this training keeps nothing private."]
    if name == "pdfed":
        return ["A relay saw all models, samples and votes; each peer saw samples of all, and models of others."]
    if name == "mixture":
        return ["The server got each client's own model, which was trained on that client's images."]
    if name == "local-only":
        return ["Clients exchanged nothing in training; the server got their models to evaluate them."]
    if name == "feddiffuse":
        collected = " and, for evaluation, whole models" if config.feddiffuse.collect_models else ""
        notes.append(f'The server saw the parts of feddiffuse-split = "{config.feddiffuse.split}"{collected}.')
    elif kind.trains_on_clients and config.secure.aggregation:
        notes.append(
            "In a round the server saw the mean of masked updates alone, and each client's numbers of images and steps."
        )
        if config.data.held_out_fraction > 0:
            notes.append("Where clients evaluate, it also saw each client's loss on its held-out images.")
    elif kind.trains_on_clients:
        notes.append("In a round the server saw each client's weights, its loss and its number of images.")
    pretrains = issubclass(kind, FedDDPM) and kind.pretrains(config)
    if pretrains and config.auxiliary.sharing == "images":
        notes.append("Each client also sent images of its own model for the auxiliary set; the model stayed there.")
    elif pretrains:
        notes.append("The server also got each client's own model, which was trained on that client's images.")
    if (pretrains and config.data.class_conditional) or (name == "fedphd" and config.hierarchy.num_edges > 1):
        notes.append("The server learned how many images of each class a client holds.")
    return notes


def _measured(metrics: list[MetricRow], client: str) -> list[str]:
    """Return what the run found out about copies and membership."""
    by_name = {metric.name: metric for metric in metrics}
    copies, notes = by_name.get(_COPIES), []
    value = _of_model(copies, client) if copies else math.nan
    if copies is None or math.isnan(value):
        notes.append("The run did not look for copies of training images among images of this model.")
    else:
        above = " This is above the floor: look at the images before you share the model." * _is_above(value, copies)
        notes.append(
            f"Near copies in pixels: {value:.2%} of {copies.n:,} generated images lie abnormally close to one of "
            f"{copies.reference_n:,} training images; of real images it is {copies.floor:.2%}.{above}"
        )
    for name, attack in _ATTACKS.items():
        auc = _of_model(by_name[name], client) if name in by_name else math.nan
        if not math.isnan(auc):
            notes.append(f"Membership inference on the model by {attack} has an AUC of {auc:.3f}; 0.5 is a guess.")
    notes.append("A low share of near copies is no proof: other attacks may find out more about the training images.")
    return notes


def _is_above(share: float, copies: MetricRow) -> bool:
    """Return whether a share is above the floor by more than chance: its 95 % interval (Wilson's) is above it."""
    if not 0 <= share <= 1 or copies.n < 1:
        return False
    return bool(binomtest(round(share * copies.n), copies.n).proportion_ci(method="wilson").low > copies.floor)


def _of_model(metric: MetricRow, client: str) -> float:
    """Return the value of the exported model; NaN if the run measured only that of all clients' models together."""
    return metric.by_client.get(client, math.nan) if client else metric.value
