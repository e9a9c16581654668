"""What a run directory says about a run, for its model card; the run may come from somewhere else."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedddpm_app.config import Config, ConfigError, Scalar, default_run_config, known_keys, load_config, one_line
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.limits import LONGEST_VALUE
from fedddpm_app.recording.files import read_lines
from fedddpm_app.recording.layout import CONFIG, STATS
from fedddpm_app.recording.reading import row_of
from fedddpm_app.recording.status import COMPLETED, read_status

_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,40}")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


@dataclass(frozen=True)
class MetricRow:
    """A metric of a run: numbers, and names of at most ``LONGEST_VALUE`` characters; NaN where it has no number.

    Attributes
    ----------
    name, sampler, reference : str
        As of ``evaluation.metrics.Metric``.
    value, std, floor : float
        The value, its own deviation, and the value of real images.
    n, reference_n, steps : int
        Generated and real images, denoising steps.
    by_client : mapping of str to float
        The value of each client's own model, if there is no global model.
    """

    name: str
    sampler: str
    reference: str
    value: float
    std: float
    floor: float
    n: int
    reference_n: int
    steps: int
    by_client: Mapping[str, float]

    def of(self, client: str) -> "MetricRow":
        """Return the metric of one client's own model."""
        return replace(self, value=self.by_client.get(client, math.nan), std=math.nan)


@dataclass(frozen=True)
class ExportedRun:
    """A completed run.

    Attributes
    ----------
    config : Config
        Its config, checked.
    run_config : mapping of str to Scalar
        The same by key.
    metrics : list of MetricRow
        The metrics of its end; empty without an evaluation.
    epsilons : mapping of str to (float, float)
        Epsilon and delta by the phase they are of: ``pretrain``, ``train``, ``total``, ``client-dp``.
    versions : mapping of str to str
        Of Python and packages.
    commit : str
        The git commit of the source; empty if it is not known, or had changes.
    class_names : list of str
        By label; empty without names.
    num_images : int or None
        All clients' training images together.
    is_deployed : bool
        Whether the clients were nodes of a deployment, and not simulated on one host.
    """

    config: Config
    run_config: Mapping[str, Scalar]
    metrics: list[MetricRow]
    epsilons: Mapping[str, tuple[float, float]]
    versions: Mapping[str, str]
    commit: str
    class_names: list[str]
    num_images: int | None
    is_deployed: bool


def read_run(directory: Path) -> ExportedRun:
    """Read the directory of a completed run.

    Raises
    ------
    ConfigError
        When it is not that of a completed run, or cannot be read.
    """
    status = read_status(directory)
    if status.state != COMPLETED:
        fix = "give the directory of a completed run"
        if (directory / CONFIG).is_file():
            fix = "only a completed run is exported; `fedddpm run --resume` continues a run that was stopped"
        raise ConfigError(f"RUN = {directory}: its status is {one_line(status.state)}; {fix}.")
    try:
        about = read_object(directory / CONFIG)
        rows = read_lines(directory / STATS)
    except (OSError, ValueError) as error:
        raise ConfigError(f"RUN = {directory} cannot be read ({error}); give the directory of a run.") from error
    given = _mapping(about.get("run_config"))
    run_config = default_run_config() | {key: value for key, value in given.items() if key in known_keys()}
    data: Mapping[str, Any] = row_of(rows, "data")
    sizes = data.get("data/num_examples")
    names = data.get("data/classes")
    return ExportedRun(
        config=load_config(run_config),
        run_config=run_config,
        metrics=[_metric(each) for each in _list(status.summary.get("metrics")) if isinstance(each, dict)],
        epsilons=_epsilons(status.summary),
        versions=_versions(about),
        commit=_commit(about),
        class_names=[one_line(str(name), LONGEST_VALUE) for name in _list(names)],
        num_images=sum(int(_number(size, 0.0)) for size in sizes) if isinstance(sizes, list) else None,
        is_deployed=(directory / "partitions.jsonl").is_file(),
    )


def _metric(metric: Mapping[str, Any]) -> MetricRow:
    names, values = _list(metric.get("client_names")), _list(metric.get("clients"))

    def text(key: str) -> str:
        return one_line(str(metric.get(key, "")), LONGEST_VALUE)

    def count(key: str) -> int:
        return int(_number(metric.get(key), 0.0))

    return MetricRow(
        name=text("name"),
        sampler=text("sampler"),
        reference=text("reference"),
        value=_number(metric.get("value")),
        std=_number(metric.get("std")),
        floor=_number(metric.get("floor")),
        n=count("n"),
        reference_n=count("reference_n"),
        steps=count("steps"),
        by_client={str(name): _number(value) for name, value in zip(names, values, strict=False)},
    )


def _epsilons(summary: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    found = {}
    for phase in ("pretrain", "train", "total"):
        found[phase] = (_number(summary.get(f"{phase}/dp_epsilon")), _number(summary.get(f"{phase}/dp_delta")))
    found["client-dp"] = (_number(summary.get("client-dp/epsilon")), _number(summary.get("client-dp/delta")))
    return {phase: pair for phase, pair in found.items() if not math.isnan(pair[0])}


def _versions(about: Mapping[str, Any]) -> dict[str, str]:
    found = {"python": about.get("python"), **_mapping(about.get("packages"))}
    return {
        name: version
        for name, version in found.items()
        if isinstance(version, str) and _VERSION.fullmatch(version) and _VERSION.fullmatch(name)
    }


def _commit(about: Mapping[str, Any]) -> str:
    commit = about.get("git_commit")
    known = isinstance(commit, str) and _COMMIT.fullmatch(commit) and about.get("git_clean") is True
    return str(commit) if known else ""


def _number(value: object, missing: float = math.nan) -> float:
    """Return a finite number as a float, anything else as ``missing``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        return missing
    return float(value) if math.isfinite(value) else missing


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
