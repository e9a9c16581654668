"""The run directory: its layout is a contract that tools and tests rely on.

``<output-dir>/<run-name>/`` holds ``config.json`` (resolved run config, git commit, versions), ``stats.jsonl``
(appended and flushed: one object per phase and round, keys with units), ``summary.json`` (status, see ``status``, and
final metrics), ``pipeline/`` (``DDPMPipeline.from_pretrained`` loads it), ``auxiliary/``,
``samples/round-0005.png``, ``samples/rounds.png``, ``checkpoints/round-0005/`` and ``plots/``.
"""

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image, Value
from safetensors.torch import save_file
from torch import Tensor

from fedddpm_app.config import Scalar
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.federation.flower_internals import Run
from fedddpm_app.recording.curves import plot_losses, plot_metrics
from fedddpm_app.recording.directory import CONFIG, check_is_new, make_directory
from fedddpm_app.recording.files import RecordingError, append_line, optional, writing
from fedddpm_app.recording.plots import plot_classes, plot_partition
from fedddpm_app.recording.provenance import describe_environment
from fedddpm_app.recording.samples import round_sheet, save_auxiliary_sheets, save_rounds, save_samples
from fedddpm_app.recording.sheets import save_pairs, to_pil
from fedddpm_app.recording.status import StatusFile
from fedddpm_app.weights import Weights


class RunRecorder:
    """Writes a run directory; a context manager, which marks a run as failed that an error ends without ``finish``.

    Parameters
    ----------
    directory : Path
        An absolute path; the folder is created here, and must not hold a run.
    durable : Path, optional
        A folder that outlives the run, see ``federation.ports.Recorder``; by default the run's ``scratch``.

    Raises
    ------
    ConfigError
        When the folder holds a run.
    """

    def __init__(self, directory: Path, durable: Path | None = None) -> None:
        check_is_new(directory)
        make_directory(directory)
        self.directory = directory
        self.durable = durable or directory / "scratch"
        self.began = time.time()
        self.stats: list[dict[str, object]] = []
        self._status = StatusFile(directory)

    def __enter__(self) -> "RunRecorder":
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if error is not None:
            with suppress(RecordingError):  # the first error counts
                self.end("failed", {}, str(error) or repr(error))

    @property
    def scratch(self) -> Path:
        """A folder for files that are removed once they are read."""
        folder = self.directory / "scratch"
        folder.mkdir(exist_ok=True)
        return folder

    def write_config(self, run_config: Mapping[str, Scalar], run: Run) -> None:
        """Write ``config.json``; the run that writes it first owns the folder."""
        about = {"run_config": dict(run_config), "run_id": str(run.run_id), "fab_hash": run.fab_hash}
        path = self.directory / CONFIG
        try:
            with path.open("x", encoding="utf-8") as file, writing(path):
                json.dump(about | describe_environment(), file, indent=2)
        except FileExistsError:
            check_is_new(self.directory)
            raise
        self._status.begin()

    def append(self, stats: Mapping[str, object]) -> None:
        """Append one object to ``stats.jsonl`` and add the peak memory of this process; NaN becomes null."""
        line = {**stats, "mem/peak_rss_mb": _peak_rss_mb()}
        self.stats.append(line)
        append_line(self.directory / "stats.jsonl", line)

    def save_partition(self, counts: Tensor, class_names: Sequence[str], num_unassigned: int) -> None:
        """Write the clients' training images per class as a line of ``stats.jsonl`` and a plot.

        ``counts`` is int64 of shape (clients, classes).
        """
        sizes = {"data/num_examples": counts.sum(1).tolist(), "data/num_unassigned": num_unassigned}
        self.append({"phase": "data", **sizes, "data/label_counts": counts.tolist(), "data/classes": [*class_names]})
        with optional(self.directory / "plots"):
            plot_partition(counts, class_names, self.directory / "plots" / "partition.png")

    def save_auxiliary(self, data: ImageTensors, clients: list[int]) -> None:
        """Write D_aux: an Arrow data set with ``image``, ``client`` (and ``label``), and a sheet per client."""
        folder = self.directory / "auxiliary"
        columns: dict[str, list[object]] = {"image": [to_pil(image) for image in data.images], "client": [*clients]}
        features = {"image": Image(), "client": Value("int32")}
        if data.labels is not None:
            columns["label"] = data.labels.tolist()
            features["label"] = ClassLabel(num_classes=int(data.labels.max()) + 1)
        with writing(folder):
            Dataset.from_dict(columns, features=Features(features)).save_to_disk(str(folder / "dataset"))
        with optional(folder):
            save_auxiliary_sheets(data.images, clients, folder, self.directory.name)

    def save_samples(
        self,
        images: Tensor,
        server_round: int,
        about: str,
        *,
        labels: Tensor | None = None,
        class_names: Sequence[str] = (),
        name: str = "",
    ) -> None:
        """Write a round's sheet of generated images, and the strip over the rounds.

        ``about`` is the part of the caption about weights and sampler; ``name`` identifies one of several models.
        """
        folder = self.directory / "samples"
        owner = f"{self.directory.name}{name and ', '}{name}"
        caption = f"{owner}, round {server_round}: {about}"
        with optional(folder):
            save_samples(images, round_sheet(folder, server_round, name), caption, labels, class_names)
            save_rounds(folder, f"{owner}, {about}", name)

    def save_classes(self, metric: Mapping[str, object], class_names: Sequence[str], name: str = "") -> None:
        """Plot the classes of the metric ``class-tv``; ``name`` identifies the model if a run has several."""
        path = self.directory / "plots" / f"classes{name and '-'}{name}.png"
        with optional(path):
            plot_classes(metric, class_names, path, name)

    def save_pairs(
        self, generated: Tensor, train: Tensor, ratios: Tensor, threshold: float, folder: str, name: str = ""
    ) -> None:
        """Write a sheet of images above their closest training images into ``samples`` or ``auxiliary``."""
        path = self.directory / folder / f"closest-pairs{name and '-'}{name}.png"
        with optional(path):
            kind = "auxiliary set" if folder == "auxiliary" else f"final model{name and ' of '}{name}"
            save_pairs(generated, train, ratios, threshold, path, f"{self.directory.name}, {kind}")

    def save_checkpoint(self, server_round: int, weights: Weights, ema_weights: Weights, name: str = "") -> None:
        """Write raw and EMA weights as two safetensors files; ``name`` identifies one of several models of a round."""
        folder = self.directory / "checkpoints" / f"round-{server_round:04d}" / name
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / "model.safetensors")
            save_file(ema_weights, folder / "ema.safetensors")

    def finish(self, status: str, metrics: Mapping[str, object], error: str = "", stopped_by: str = "") -> None:
        """Write ``summary.json`` as ``end`` does, then the plots of losses and metrics."""
        self.end(status, metrics, error, stopped_by)
        with optional(self.directory / "plots"):
            if self.stats:
                plot_losses(self.stats, self.directory / "plots" / "losses.png", self.directory.name)
                plot_metrics(self.stats, self.directory / "plots" / "metrics.png", self.directory.name)

    def end(self, status: str, metrics: Mapping[str, object], error: str = "", stopped_by: str = "") -> None:
        """Write ``summary.json``; only the first call counts.

        ``error`` is the reason of a failed run, ``stopped_by`` the cause of an interrupted run.
        """
        with suppress(OSError):  # it is not empty if the run stopped in the middle of its work
            (self.directory / "scratch").rmdir()
        reasons = {"error": error, "stopped_by": stopped_by}
        summary = {"status": status, **metrics, "time/total_s": round(time.time() - self.began, 1)}
        self._status.end(summary | {name: reason for name, reason in reasons.items() if reason})


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)
