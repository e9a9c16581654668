"""The keys of how weights travel."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT, TransportName, WireDtype


@dataclass(frozen=True, config=STRICT)
class TransportConfig:
    """How weights go to the clients and come back."""

    PREFIX: ClassVar[str] = ""
    transport: TransportName
    wire_dtype: WireDtype

    @property
    def keeps_residuals(self) -> bool:
        """Whether a client keeps, from round to round, what rounding lost."""
        return self.wire_dtype == "int8-delta"
