"""The end of a run, whatever ends it: its work is done, an exception, or Flower, which stops the process."""

from collections.abc import Sequence
from contextlib import suppress

from fedddpm_app.federation.flower_internals import at_exit_of_flower
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.progress import logger
from fedddpm_app.recording.files import RecordingError
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.recording.status import COMPLETED, INTERRUPTED, STOP_SIGNAL


class RunEnding:
    """A context manager around all work of a run with an open folder; it writes the status and the metrics.

    Parameters
    ----------
    recorder : RunRecorder
        The recorder.

    Attributes
    ----------
    strategy : FederatedStrategy or None
        The strategy, once it is made.
    """

    def __init__(self, recorder: RunRecorder) -> None:
        self.strategy: FederatedStrategy | None = None
        self._recorder = recorder

    def __enter__(self) -> "RunEnding":
        at_exit_of_flower(self._stop)
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        if error is not None:
            self._recorder.finish_after(error, self._metrics())
        if isinstance(error, Exception):
            logger.info('continue the run with resume = "%s"', self._recorder.directory)

    def complete(self, metrics: Sequence[object]) -> None:
        """Finish a run whose work is done, with the metrics of its final model."""
        self._recorder.finish(COMPLETED, {**self._metrics(), "metrics": [*metrics]})

    def _stop(self) -> None:
        """Finish a run whose process gets a stop signal; after the end of the run, do nothing.

        The process may go on for some seconds, and its last checkpoint with it: until then nobody may resume the run.
        """
        with suppress(RecordingError):
            self._recorder.end(INTERRUPTED, self._metrics(), stopped_by=STOP_SIGNAL, releases=False)
        if transport := getattr(self.strategy, "transport", None):
            transport.close()

    def _metrics(self) -> dict[str, object]:
        """Return the metrics of ``summary.json``: the last value of every loss, and the costs of the run so far."""
        stats, generated = self._recorder.stats, self._recorder.generated
        losses = {
            key: value
            for row in stats
            for key, value in row.items()
            if key.endswith("loss") and isinstance(value, float)
        }
        return {
            **losses,
            "images/auxiliary": next((row["aux/num_images"] for row in stats if "aux/num_images" in row), 0),
            "images/preview": generated["preview"],
            "images/evaluation": generated["evaluation"],
            **(self.strategy.accounting.summary() if self.strategy else {}),
            **(self.strategy.spending.summary(self.strategy.config) if self.strategy else {}),
            **(self.strategy.client_privacy.summary() if self.strategy else {}),
        }
