"""The keys of the run: its algorithm, its output, and its hardware."""

import json
from typing import Annotated, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedddpm_app.config.fields import (
    STRICT,
    AggregatorName,
    Compile,
    CountOrZero,
    MemoryFormat,
    PositiveInt,
    Precision,
    Scalar,
)


@dataclass(frozen=True, config=STRICT)
class RunConfig:
    """The algorithm and rounds of a run, its output, and its hardware."""

    PREFIX: ClassVar[str] = ""
    algorithm: str
    algorithm_options: Annotated[
        str,
        Field(
            pattern=r"^\s*([\w-]+=\S+(\s+|$))*$",
            description='it should be "name=value name=value", for your own algorithm, or empty',
        ),
    ]
    aggregator: AggregatorName
    num_rounds: PositiveInt
    clients_per_round: CountOrZero
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    output_dir: Annotated[str, Field(min_length=1)]
    run_name: Annotated[
        str,
        Field(
            pattern=r"^(\w[\w.-]{0,99})?$",
            description='it should be a plain folder name of at most 100 letters, digits, "_", "-" and ".", or empty',
        ),
    ]
    device: Annotated[
        str,
        Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="it should be auto, cpu, mps, cuda or cuda:N"),
    ]
    precision: Precision
    memory_format: MemoryFormat
    compile: Compile
    client_threads: PositiveInt
    server_threads: PositiveInt
    state_dir: str
    resume: str
    resume_previous: bool

    @property
    def options(self) -> dict[str, Scalar]:
        """``algorithm_options`` as a mapping; a value that is not a number, true or false is a text."""
        pairs = (word.split("=", 1) for word in self.algorithm_options.split())
        return {name: _to_scalar(value) for name, value in pairs}


def _to_scalar(text: str) -> Scalar:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text
