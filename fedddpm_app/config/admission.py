"""The key of the admission of replies."""

from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import STRICT

_NUMBER = r"(0*[1-9]\d*(\.\d*)?|0+\.0*[1-9]\d*)([eE][+-]?\d{1,2})?"  # not zero
_FORMS = 'it should be a multiple of the median, such as "100x", an L2 norm, such as "25.0", or "" for no limit'


_RECORD_MULTIPLE = 100.0  # of the median, for further records, if the limit of the weights is a norm


@dataclass(frozen=True, config=STRICT)
class AdmissionConfig:
    """The replies that the server refuses although they have the right form."""

    PREFIX: ClassVar[str] = ""
    max_update_norm: Annotated[str, Field(pattern=rf"^({_NUMBER}x?)?$", description=_FORMS)]

    @property
    def norm_multiple(self) -> float:
        """The largest update norm as a multiple of the median; 0 means that the limit is not a multiple."""
        return float(self.max_update_norm[:-1]) if self.max_update_norm.endswith("x") else 0.0

    @property
    def norm_limit(self) -> float:
        """The largest update norm; 0 means that there is no such limit."""
        return 0.0 if self.max_update_norm.endswith("x") else float(self.max_update_norm or 0.0)

    @property
    def record_multiple(self) -> float:
        """The largest norm of a further record as a multiple of the median; 0 means that there is no limit."""
        return _RECORD_MULTIPLE if self.norm_limit else self.norm_multiple
