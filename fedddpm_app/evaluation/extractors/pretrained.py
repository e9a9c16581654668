"""Networks with published weights, by the value of the key that asks for one: three keys do."""

from dataclasses import dataclass

import torch

from fedddpm_app.config import ConfigError
from fedddpm_app.evaluation.extractors.base import Extractor
from fedddpm_app.evaluation.extractors.efficientnet_lite0 import EfficientNetLite0
from fedddpm_app.evaluation.extractors.inception_v3 import InceptionV3


@dataclass(frozen=True)
class Pretrained:
    """The name of a pretrained extractor, and what asks for it.

    Attributes
    ----------
    key, name : str
        A run-config key such as ``eval-extractor``, and its value.
    instead : str
        A value of the key that needs neither packages nor files; errors advise it.
    """

    key: str
    name: str
    instead: str

    def check(self, inception_weights: str) -> None:
        """Raise ``ConfigError`` if this is Inception-v3, and its weights are not given, which every client needs."""
        if self.name == InceptionV3.name and not inception_weights:
            raise ConfigError(
                f'{self._asked} needs inception-weights = "PATH" on every client, at a site as a key of --node-config: '
                f"set it, or use {self._way_out}."
            )

    def load(self, inception_weights: str, device: torch.device) -> Extractor:
        """Return the extractor.

        Parameters
        ----------
        inception_weights : str
            Path of the weights of ``inception-v3``; "" for none.
        device : torch.device
            The device that the network runs on.

        Raises
        ------
        ConfigError
            If packages, or the weights of ``inception-v3``, are missing.
        """
        if self.name == InceptionV3.name and not inception_weights:
            raise ConfigError(f'{self._asked} needs inception-weights = "PATH": set it, or use {self._way_out}.')
        try:
            match self.name:
                case EfficientNetLite0.name:
                    return EfficientNetLite0(device)
                case InceptionV3.name:
                    return InceptionV3(inception_weights, device)
        except ImportError as error:
            raise ConfigError(f"{self._asked} {error}, or use {self._way_out}.") from error
        raise ValueError(f"{self._asked} is not the name of a pretrained extractor")

    @property
    def _asked(self) -> str:
        return f'{self.key} = "{self.name}"'

    @property
    def _way_out(self) -> str:
        return f'{self.key} = "{self.instead}"'
