"""The files of an audit: ``audit.json`` and a picture of the ROC curves."""

from collections.abc import Sequence
from pathlib import Path

from fedddpm_app.audit.attacks import Findings
from fedddpm_app.evaluation.membership import roc_of
from fedddpm_app.recording.files import write_json, writing
from fedddpm_app.recording.layout import AUDIT, PLOTS
from fedddpm_app.recording.roc import Curve, plot_roc

PICTURE = "audit.png"


def save_findings(run_dir: Path, findings: Findings, seed: int, clients: Sequence[int]) -> None:
    """Write the findings into a run directory.

    Raises
    ------
    RecordingError
        When a file cannot be written.
    """
    curves = [
        Curve(each.target, each.attack.name, *roc_of(each.attack.members, each.attack.others))
        for each in findings.attacks
    ]
    write_json(run_dir / AUDIT, {"seed": seed, "clients": [*clients], **findings.to_dict()})
    if curves:
        with writing(run_dir / PLOTS / PICTURE):
            plot_roc(curves, run_dir / PLOTS / PICTURE, run_dir.resolve().name)
