"""The keys of the transport of weights."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, TransportName, WireDtype


@dataclass(frozen=True, config=STRICT)
class TransportConfig:
    """The carrier and the encoding of weights between server and clients."""

    PREFIX: ClassVar[str] = ""
    transport: TransportName
    wire_dtype: WireDtype

    @property
    def keeps_residuals(self) -> bool:
        """Whether a client keeps its rounding error between rounds."""
        return self.wire_dtype == "int8-delta"
