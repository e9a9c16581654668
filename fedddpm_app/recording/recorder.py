"""The run directory: its layout is a contract that tools and tests rely on.

``<output-dir>/<run-name>/`` holds ``config.json`` (resolved run config, git commit, versions), ``stats.jsonl``
(appended and flushed: one object per phase and round, keys with units), ``summary.json`` (status, see ``status``, and
final metrics), ``pipeline/`` (``DDPMPipeline.from_pretrained`` loads it), ``auxiliary/``,
``samples/round-0005.png``, ``samples/rounds.png``, ``checkpoints/round-0005/`` (see ``checkpoints``) and ``plots/``.
``unfinished/`` holds the pieces of a phase that is not finished, for a run that is resumed. ``security.jsonl`` says who
joined, left and declined, and what was refused (``federation.security_log``); it is only appended to. In a deployment,
``partitions.jsonl`` has the nodes that the partitions belong to (``federation.nodes.bindings``). ``tracking/`` has what
trackers store.
"""

import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from fedddpm_app.config import Scalar
from fedddpm_app.diffusion.images import ImageTensors
from fedddpm_app.disk.bounded import read_object
from fedddpm_app.federation.flower_internals import Run
from fedddpm_app.recording.auxiliary_set import discard_auxiliary_set, load_auxiliary_set, save_auxiliary_set
from fedddpm_app.recording.checkpoints import Checkpoint, CheckpointWriter, remove_checkpoints
from fedddpm_app.recording.directory import check_is_new, make_directory
from fedddpm_app.recording.files import append_line, keep_lines, read_lines, write_json
from fedddpm_app.recording.layout import AUXILIARY, CONFIG, SCRATCH, STATS, UNFINISHED
from fedddpm_app.recording.pictures import RunPictures
from fedddpm_app.recording.provenance import describe_environment
from fedddpm_app.recording.reading import DATA, first_run_of
from fedddpm_app.recording.sink import Sink
from fedddpm_app.recording.status import COMPLETED, FAILED, INTERRUPTED, name_of_stop
from fedddpm_app.recording.status_file import StatusFile
from fedddpm_app.weights import Weights

NO_DATA: Mapping[str, str] = MappingProxyType({})
_SINK_SECONDS = 30.0  # for the sink at the end of a run, such as an upload
_SINK_SECONDS_AT_STOP = 3.0  # where Flower ends the process soon


class RunRecorder:
    """Writes a run directory; a context manager, which finishes a run that an exception ends.

    Parameters
    ----------
    directory : Path
        An absolute path; the folder is created here, and must not hold a run.
    durable : Path, optional
        A folder that outlives the run, see ``federation.ports.Recorder``; by default the run's ``scratch``.

    Attributes
    ----------
    first_run : str
        Of a resumed run, the id of its first process, which ``config.json`` keeps; empty for a new run.
    stats : list of dict
        The lines of ``stats.jsonl``.
    pictures : RunPictures
        Its plots and sheets of images.
    generated : Counter of str
        The number of generated images by purpose.
    auxiliary_digest : str
        The SHA-256 of the stored D_aux; empty if there is none.

    Raises
    ------
    ConfigError
        When the folder holds a run.
    """

    def __init__(self, directory: Path, durable: Path | None = None) -> None:
        check_is_new(directory)
        make_directory(directory)
        self._open(directory, durable)

    def _open(self, directory: Path, durable: Path | None) -> None:
        self.directory = directory
        self.durable = durable or directory / SCRATCH
        self.began = time.time()
        self.first_run = ""
        self.stats: list[dict[str, object]] = []
        self.generated: Counter[str] = Counter()
        self.auxiliary_digest = ""
        self._run_config: dict[str, Scalar] = {}
        self.pictures = RunPictures(directory)
        self._sink: Sink | None = None
        self._checkpoints = CheckpointWriter(directory)
        self._status = StatusFile(directory)

    @classmethod
    def resume(cls, directory: Path, checkpoint: Checkpoint | None, durable: Path | None = None) -> "RunRecorder":
        """Continue the folder of a run after a checkpoint, or, without one, from the start of the run.

        Later checkpoints, which are damaged or not wanted, are removed, and the lines of ``stats.jsonl`` that the
        checkpoint does not cover: they are written again.
        """
        make_directory(directory)
        recorder = cls.__new__(cls)
        recorder._open(directory, durable)
        recorder._status.begin()
        with recorder:
            if checkpoint is not None:
                remove_checkpoints(directory, lambda server_round: server_round <= checkpoint.server_round)
            shutil.rmtree(directory / SCRATCH, ignore_errors=True)
            run: Mapping[str, Any] = checkpoint.run if checkpoint else {}
            recorder.stats = keep_lines(directory / STATS, int(run.get("num_stats", 0)))
            recorder.generated.update(run.get("generated", {}))
            recorder.began -= float(run.get("seconds", 0.0))
        return recorder

    def __enter__(self) -> "RunRecorder":
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if error is not None:
            self.finish_after(error, {})

    def attach(self, sink: Sink | None) -> None:
        """Also give all further lines and pictures, and the summary, to a sink, if there is one."""
        self._sink = self.pictures.sink = sink

    @property
    def scratch(self) -> Path:
        """A folder for files that are removed once they are read."""
        folder = self.directory / SCRATCH
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    @property
    def unfinished(self) -> Path:
        """A folder for finished pieces of a phase, which a resumed run reads; it is removed when the run completes."""
        folder = self.directory / UNFINISHED
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def write_config(self, run_config: Mapping[str, Scalar], run: Run, data: Mapping[str, str] = NO_DATA) -> None:
        """Write ``config.json``, which makes the folder that of a run; the run that takes the folder first owns it.

        ``data`` has the digests of the data on this host, see ``FederatedDataset.digests``.
        """
        self._run_config = dict(run_config)
        about = {"run_config": self._run_config, "run_id": str(run.run_id), "fab_hash": run.fab_hash, DATA: {**data}}
        path = self.directory / CONFIG
        self._status.begin(lambda: check_is_new(self.directory))  # another run may have been faster
        with self:
            write_json(path, about | describe_environment())

    def add_to_config(
        self, run_config: Mapping[str, Scalar], run: Run, server_round: int | None, data: Mapping[str, str] = NO_DATA
    ) -> list[str]:
        """Add to ``config.json`` that the run was resumed after ``server_round`` (None is its start).

        Return the keys of the run config that have changed.
        """
        path = self.directory / CONFIG
        about = read_object(path)
        changed = {key: value for key, value in run_config.items() if about["run_config"].get(key) != value}
        entry = {"after_round": server_round, "run_id": str(run.run_id), "changed": changed, **describe_environment()}
        about["resumed"] = [*about.get("resumed", []), entry]
        about[DATA] = {**(about.get(DATA) or {}), **data}
        about["run_config"] = self._run_config = dict(run_config)
        self.first_run = first_run_of(self.directory)  # which stays in the file: it names what the clients keep
        write_json(path, about)
        return sorted(changed)

    def append(self, stats: Mapping[str, object]) -> None:
        """Append one object to ``stats.jsonl`` and add the peak memory of this process; NaN becomes null."""
        line = {**stats, "mem/peak_rss_mb": _peak_rss_mb()}
        self.stats.append(line)
        append_line(self.directory / STATS, line)
        if self._sink is not None:
            self._sink.line(line)

    def append_to(self, name: str, entry: Mapping[str, object]) -> None:
        """Append an object to another file of the folder, with one JSON object per line."""
        append_line(self.directory / name, entry)

    def keep_of(self, name: str, count: int) -> Sequence[Mapping[str, Any]]:
        """Keep the first ``count`` objects of such a file, and return them."""
        return keep_lines(self.directory / name, count)

    def entries_of(self, name: str) -> Sequence[Mapping[str, Any]]:
        """Return all objects of such a file; empty without one."""
        return read_lines(self.directory / name)

    def save_partition(self, counts: Tensor, class_names: Sequence[str], num_unassigned: int) -> None:
        """Write the clients' training images per class as a line of ``stats.jsonl`` and a plot.

        ``counts`` is int64 of shape (clients, classes).
        """
        sizes = {"data/num_examples": counts.sum(1).tolist(), "data/num_unassigned": num_unassigned}
        self.append({"phase": "data", **sizes, "data/label_counts": counts.tolist(), "data/classes": [*class_names]})
        self.pictures.save_partition(counts, class_names)

    def save_auxiliary(self, data: ImageTensors, clients: list[int]) -> None:
        """Write D_aux: an Arrow data set with ``image``, ``client`` (and ``label``), and a sheet per client."""
        folder = self.directory / AUXILIARY
        self.auxiliary_digest = save_auxiliary_set(folder, data, clients)
        names = next((row["data/classes"] for row in self.stats if "data/classes" in row), None)
        self.pictures.save_auxiliary(data, clients, names if isinstance(names, list) else [])

    def load_auxiliary(self) -> tuple[ImageTensors, list[int]] | None:
        """Read D_aux on the CPU, with the partition id of each image; None if there is none, or if it is damaged."""
        found = load_auxiliary_set(self.directory / AUXILIARY)
        self.auxiliary_digest = found.digest if found else ""
        return (found.data, found.clients) if found else None

    def remove_auxiliary(self) -> None:
        """Remove D_aux, and its sheets."""
        self.discard_auxiliary()
        shutil.rmtree(self.directory / AUXILIARY, ignore_errors=True)

    def discard_auxiliary(self) -> None:
        """Do not use the stored D_aux for a resumed run: it is not the set that the run uses."""
        discard_auxiliary_set(self.directory / AUXILIARY)
        self.auxiliary_digest = ""

    def save_checkpoint(
        self,
        server_round: int,
        models: Mapping[str, Weights],
        state: Mapping[str, object],
        newest: int,
        is_permanent: Callable[[int], bool],
    ) -> None:
        """Write a checkpoint in the background, see ``CheckpointWriter``; it covers the lines of ``stats`` so far."""
        about = {
            "run_config": self._run_config,
            "num_stats": len(self.stats),
            "generated": dict(self.generated),
            "seconds": time.time() - self.began,
        }
        self._checkpoints.save(server_round, models, state, about, newest, is_permanent)

    def wait_for_checkpoint(self) -> bool:
        """Wait until the last checkpoint is on the disk, or has failed with a warning; return whether it is there."""
        return self._checkpoints.wait()

    def check_checkpoint(self) -> None:
        """Wait for the last checkpoint; raise ``RecordingError`` if it could not be written."""
        self._checkpoints.check()

    def keep_checkpoints(self, is_kept: Callable[[int], bool]) -> None:
        """Remove the checkpoints of rounds for which ``is_kept`` returns False."""
        remove_checkpoints(self.directory, is_kept)

    def finish(self, status: str, metrics: Mapping[str, object], error: str = "", stopped_by: str = "") -> None:
        """Write ``summary.json`` as ``end`` does, then the plots of losses and metrics."""
        self._checkpoints.wait()
        self.end(status, metrics, error, stopped_by)
        if status == COMPLETED:
            shutil.rmtree(self.directory / UNFINISHED, ignore_errors=True)
        self.pictures.save_curves(self.stats)

    def finish_after(self, error: BaseException, metrics: Mapping[str, object]) -> None:
        """Finish a run that an error, or the exception of a stop, ends; this exception counts, not a full disk."""
        with suppress(OSError):
            if isinstance(error, KeyboardInterrupt | SystemExit):
                self.finish(INTERRUPTED, metrics, stopped_by=name_of_stop(error))
            else:
                self.finish(FAILED, metrics, error=str(error) or repr(error))

    def end(
        self,
        status: str,
        metrics: Mapping[str, object],
        error: str = "",
        stopped_by: str = "",
        releases: bool = True,
    ) -> None:
        """Write ``summary.json``; only the first call counts.

        ``error`` is the reason of a failed run, ``stopped_by`` the cause of an interrupted run. Without ``releases``,
        nobody can resume the run before the end of this process.
        """
        with suppress(OSError):  # it is not empty if the run stopped in the middle of its work
            (self.directory / SCRATCH).rmdir()
        reasons = {"error": error, "stopped_by": stopped_by}
        summary = {"status": status, **metrics, "time/total_s": round(time.time() - self.began, 1)}
        try:
            self._status.end(summary | {name: reason for name, reason in reasons.items() if reason}, releases)
        finally:
            if self._sink is not None:
                self._sink.end(summary, _SINK_SECONDS if releases else _SINK_SECONDS_AT_STOP)


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3), 1)
