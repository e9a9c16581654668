"""TensorBoard: an event file, which `tensorboard --logdir` shows while the run goes on.

The numbers are stored as float32: TensorBoard's fast reader, the default, shows no others. The package ``tensorboard``
writes the records; neither TensorFlow nor PyTorch is needed.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata as of_hparams
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text import metadata as of_texts
from tensorboard.summary.writer.record_writer import RecordWriter
from tensorboard.util.tensor_util import make_tensor_proto

from fedddpm_app.recording.status import COMPLETED
from fedddpm_app.tracking.tracker import TrackedRun, Tracker

_STATUS = "status"


class TensorBoardTracker:
    """Writes one event file; see ``Tracker``."""

    def __init__(self, run: TrackedRun) -> None:
        self._round = 0
        self._writer = RecordWriter((run.folder / f"events.out.tfevents.{time.time_ns()}").open("xb"))
        self._write(file_version="brain.Event:2")
        self._write(session_log=SessionLog(status=SessionLog.START))  # a page that is open forgets earlier points
        self._write(summary=hparams_pb({**run.config}, trial_id=run.identity))

    def log(self, server_round: int, values: Mapping[str, float]) -> None:
        """Append a scalar for each value."""
        self._add(server_round, *(Summary.Value(tag=name, simple_value=value) for name, value in values.items()))

    def picture(self, server_round: int, name: str, path: Path) -> None:
        """Append the PNG as it is."""
        with Image.open(path) as image:
            width, height = image.size
        shown = Summary.Image(encoded_image_string=path.read_bytes(), width=width, height=height, colorspace=3)
        self._add(server_round, Summary.Value(tag=name, image=shown))

    def finish(self, status: str) -> None:
        """Append the status, as a text and as that of the hyper-parameters' session."""
        about = of_texts.create_summary_metadata(display_name="", description="")
        self._add(self._round, Summary.Value(tag=_STATUS, tensor=make_tensor_proto(status), metadata=about))
        outcome = STATUS_SUCCESS if status == COMPLETED else STATUS_FAILURE
        end = HParamsPluginData(session_end_info=SessionEndInfo(status=outcome, end_time_secs=time.time()))
        about = of_hparams.create_summary_metadata(end)
        tag, tensor = of_hparams.SESSION_END_INFO_TAG, of_hparams.NULL_TENSOR
        self._add(self._round, Summary.Value(tag=tag, tensor=tensor, metadata=about))
        self._writer.close()

    def _add(self, server_round: int, *values: Summary.Value) -> None:
        self._round = server_round
        self._write(step=server_round, summary=Summary(value=values))

    def _write(self, **event: Any) -> None:
        self._writer.write(Event(wall_time=time.time(), **event).SerializeToString())
        self._writer.flush()


def open_tracker(run: TrackedRun) -> Tracker:
    """Return the tracker of a run."""
    return TensorBoardTracker(run)
