"""The types of the values in the groups of a run config."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

Scalar = bool | int | float | str
Kind = Literal["text", "number", "flag"]
Sampler = Literal["ddpm", "ddim", "dpm-solver++"]
Extractor = Literal["auto", "classifier", "efficientnet-lite0", "inception-v3", "pixels-pca"]
Precision = Literal["auto", "fp32", "bf16"]
MemoryFormat = Literal["auto", "contiguous", "channels-last"]
Compile = Literal["auto", "on", "off"]
LearningRateSchedule = Literal["constant", "cosine"]
TransportName = Literal["auto", "shared-memory", "flat", "arrays"]
WireDtype = Literal["fp32", "bf16", "int8-delta"]
AggregatorName = Literal[
    "fedavg",
    "fedavgm",
    "fedadam",
    "fedyogi",
    "fedadagrad",
    "fedmedian",
    "fedtrimmedavg",
    "krum",
    "multikrum",
    "bulyan",
]

LARGEST_INT = 2**63 - 1  # that Flower sends

PositiveInt = Annotated[int, Field(ge=1, le=LARGEST_INT)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST_INT)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
FloatOrZero = Annotated[float, Field(ge=0, allow_inf_nan=False)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, lt=1)]

INTEGERS = r"\s*\d+\s*(,\s*\d+\s*)*"
STRICT = ConfigDict(strict=True, extra="forbid", defer_build=True)
