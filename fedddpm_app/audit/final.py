"""The attacks on a run at its end, as metrics, for runs whose images are all on one host."""

from pathlib import Path

import numpy as np

from fedddpm_app.audit.attacks import RATIO, Audit, Effort, Findings
from fedddpm_app.audit.saving import save_findings
from fedddpm_app.config import Config
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.evaluation.membership import Attack
from fedddpm_app.evaluation.metrics import Metric, SamplingInfo
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.progress import logger
from fedddpm_app.training.declined import DeclinedError

IMAGES, DRAWS, REFERENCES = 500, 4, 4  # the defaults of `fedddpm audit`
_GUESS = 0.5
_SUFFIXES = {RATIO: "-likelihood-ratio"}  # of names; other attacks have none


def attack_run(
    run_dir: Path, config: Config, task: DiffusionTask, auxiliary: tuple[ImageTensors, list[int]] | None
) -> list[Metric]:
    """Try the attacks of ``membership-attack`` on a run, write their findings, and return them as metrics.

    Parameters
    ----------
    run_dir : Path
        The run directory, with its pipelines.
    config : Config
        The run's config.
    task : DiffusionTask
        Its task, with the images of all clients.
    auxiliary : tuple of ImageTensors and list of int, or None
        D_aux, and the client of each image.

    Returns
    -------
    list of Metric
        The AUC for the final model (``membership-final``; a mean over clients without a global model), for the
        clients' own models that left them (``membership-own-models``, a mean over clients) and for D_aux
        (``membership-auxiliary``), as far as the run has them; empty if an attack fails. With "likelihood-ratio", the
        models are also attacked by it, as metrics of their own (``membership-final-likelihood-ratio``).
    """
    references = REFERENCES if config.evaluation.membership_attack == "likelihood-ratio" else 0
    clients = [*range(config.data.num_clients)]
    try:
        findings = Audit(run_dir, config, task, clients, Effort(IMAGES, DRAWS, references)).run(None, auxiliary)
    except (RuntimeError, ValueError, ArithmeticError, DeclinedError) as error:  # such as a reference that diverges
        logger.warning("membership-attack failed, the run completes without it: %s", error, exc_info=error)
        return []
    save_findings(run_dir, findings, config.run.seed, clients)
    return metrics_of(findings)


def metrics_of(findings: Findings) -> list[Metric]:
    """Return the AUC of each attack on each kind of target: the larger of two would be above 0.5 by chance."""
    found: dict[str, list[Attack]] = {}
    for each in findings.attacks:
        found.setdefault(f"membership-{each.kind}{_SUFFIXES.get(each.attack.name, '')}", []).append(each.attack)
    return [_metric(name, attacks) for name, attacks in found.items()]


def _metric(name: str, attacks: list[Attack]) -> Metric:
    """Return the mean AUC of one attack."""
    values = [attack.auc for attack in attacks]
    return Metric(
        name=name,
        value=float(np.mean(values)),
        std=float(np.std(values, ddof=1)) if len(values) > 1 else None,
        n=sum(len(attack.members) for attack in attacks),
        reference="held-out and test",
        reference_n=sum(len(attack.others) for attack in attacks),
        reference_digest="",
        extractor=attacks[0].name,
        extractor_digest="",
        sampling=SamplingInfo("", 0, ""),
        floor=_GUESS,
        floor_std=None,
        floor_n=0,
        floor_reference_n=0,
        details={"tpr_at_1_percent": float(np.mean([attack.tpr for attack in attacks]))},
    )
