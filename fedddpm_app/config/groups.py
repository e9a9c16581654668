"""A complete run config: frozen groups, one per concept, in files that follow the headings of pyproject.toml.

A key of ``[tool.flwr.app.config]`` is its group's ``PREFIX`` plus its field's name, in kebab case.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedddpm_app.config.admission import AdmissionConfig
from fedddpm_app.config.aggregator import AggregatorConfig
from fedddpm_app.config.baselines import Baselines
from fedddpm_app.config.client_dp import ClientDPConfig
from fedddpm_app.config.data import DataConfig
from fedddpm_app.config.diffusion import DiffusionConfig
from fedddpm_app.config.distillation import KDConfig, LateConfig
from fedddpm_app.config.dp import DPConfig
from fedddpm_app.config.evaluation import EvaluationConfig, PreviewConfig, RecordingConfig
from fedddpm_app.config.fedddpm import AuxiliaryConfig, CorrectionConfig, FedDDPMConfig, PretrainConfig
from fedddpm_app.config.fedddpm_plus import PlusConfig
from fedddpm_app.config.fedphd import HierarchyConfig, PruneConfig
from fedddpm_app.config.fields import Scalar
from fedddpm_app.config.model import UNetConfig
from fedddpm_app.config.pdfed import PDFedConfig
from fedddpm_app.config.run import RunConfig
from fedddpm_app.config.secure import SecureConfig
from fedddpm_app.config.sharing import SharingConfig, checks_memorization
from fedddpm_app.config.tracking import TrackingConfig
from fedddpm_app.config.training import TrainingConfig
from fedddpm_app.config.transport import TransportConfig
from fedddpm_app.config.waiting import WaitingConfig

_NOT_OF_TRAINING = (
    *("run", "sharing", "preview", "evaluation", "recording", "tracking", "transport", "waiting"),
    "admission",
)


@dataclass(frozen=True)
class Config(Baselines):
    """A complete, checked run config."""

    run: RunConfig
    data: DataConfig
    unet: UNetConfig
    diffusion: DiffusionConfig
    training: TrainingConfig
    fedddpm: FedDDPMConfig
    pretrain: PretrainConfig
    auxiliary: AuxiliaryConfig
    sharing: SharingConfig
    correction: CorrectionConfig
    plus: PlusConfig
    kd: KDConfig
    late: LateConfig
    hierarchy: HierarchyConfig
    prune: PruneConfig
    pdfed: PDFedConfig
    aggregator: AggregatorConfig
    preview: PreviewConfig
    evaluation: EvaluationConfig
    recording: RecordingConfig
    tracking: TrackingConfig
    dp: DPConfig
    client_dp: ClientDPConfig
    transport: TransportConfig
    waiting: WaitingConfig
    admission: AdmissionConfig
    secure: SecureConfig

    @property
    def checks_memorization(self) -> bool:
        """Whether clients compare images of their own models with their training images before they share anything."""
        check, epsilon = self.sharing.memorization_check, self.dp.pretrain_dp_epsilon
        return checks_memorization(check, self.auxiliary.sharing, self.data.partition, epsilon)

    @property
    def about_training(self) -> str:
        """The settings of a client's training as one text, which is the same on all hosts of a run."""
        groups = {name: group for name, group in asdict(self).items() if name not in _NOT_OF_TRAINING}
        del groups["pretrain"]["timeout"]
        del groups["data"]["cache_dir"]  # a folder of the host
        return repr((self.run.algorithm, self.run.algorithm_options, self.run.seed, groups))


class NotValidError(Exception):
    """A check needs a value that is not valid itself."""


class PartialGroup:
    """The valid values of a group in which some values are not; the use of another value raises ``NotValidError``.

    Parameters
    ----------
    group : type
        The group's class, whose properties are available.
    values : dict
        The valid values by the field's name.
    """

    def __init__(self, group: type, values: Mapping[str, Scalar]) -> None:
        self._group, self._values = group, values

    def __getattr__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        found = vars(self._group).get(name)
        if isinstance(found, property) and found.fget:
            return found.fget(self)
        raise NotValidError(name)


def is_due(every: int, server_round: int, num_rounds: int) -> bool:
    """Return whether work that repeats every ``every`` rounds (0: only at the end) is due after this round."""
    return server_round == num_rounds or (every > 0 and server_round % every == 0)
