"""The sink between a run and its trackers: it never makes the run wait, and no fault of a tracker reaches the run."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from fedddpm_app.config import first_line
from fedddpm_app.progress import logger
from fedddpm_app.tracking.pictures import Picture, PictureList
from fedddpm_app.tracking.tracker import Tracker
from fedddpm_app.tracking.values import points_of_line, points_of_summary

OpenTracker = Callable[[], Tracker]
_Job = Callable[[Tracker], None]


class TrackingSink:
    """Passes a run's lines and pictures to trackers in a thread. A tracker that raises gives one warning and is left.

    Parameters
    ----------
    trackers : mapping of str to callable
        By the value of the key ``tracker``, a function that returns the tracker.
    pictures : PictureList
        The pictures of the run so far, for a resumed run.
    client_images : bool
        Whether the trackers get pictures that show clients' images, or images of clients' own models.
    """

    def __init__(self, trackers: Mapping[str, OpenTracker], pictures: PictureList, client_images: bool) -> None:
        self._openers = trackers
        self._pictures = pictures
        self._client_images = client_images
        self._round = self._lines = 0
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()  # a signal handler may put into it at any time
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="trackers", daemon=True)
        self._thread.start()

    def replay(self, lines: list[dict[str, object]]) -> None:
        """Pass on the lines that a resumed run keeps, and the pictures from before the last of them."""
        pictures = self._pictures.keep(len(lines))
        for line in lines:
            for picture in (each for each in pictures if each.num_lines == self._lines):
                self._pass_on(picture)
            self.line(line)

    def line(self, line: Mapping[str, object]) -> None:
        """Pass on a line of ``stats.jsonl``."""
        self._round, values = points_of_line(line)
        self._lines += 1
        self._put_points(self._round, values)

    def picture(self, path: Path, name: str, *, server_round: int | None = None, of_clients: bool = False) -> None:
        """Pass on a PNG of the run, see ``recording.sink``, unless it shows of clients what trackers do not get."""
        place = self._round if server_round is None else server_round
        picture = Picture(path, name, place, self._lines, of_clients)
        self._pictures.add(picture)
        self._pass_on(picture)

    def end(self, summary: Mapping[str, object], seconds: float) -> None:
        """Pass on the summary, and wait for the trackers for ``seconds`` at most; only the first call counts."""
        if self._ended:
            return
        self._ended = True
        self._put_points(self._round, points_of_summary(summary))
        status = str(summary["status"])
        self._jobs.put(lambda tracker: tracker.finish(status))
        self._jobs.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            logger.warning("tracker: not finished after %.0f s, and left alone; stats.jsonl has all values", seconds)

    def _put_points(self, server_round: int, values: Mapping[str, float]) -> None:
        if values:
            self._jobs.put(lambda tracker: tracker.log(server_round, values))

    def _pass_on(self, picture: Picture) -> None:
        if self._client_images or not picture.of_clients:
            self._jobs.put(lambda tracker: tracker.picture(picture.server_round, picture.name, picture.path))

    def _work(self) -> None:
        trackers: dict[str, Tracker] = {}
        for name, opener in self._openers.items():
            with _left_if_it_fails(trackers, name):
                trackers[name] = opener()
        while (job := self._jobs.get()) is not None:
            for name in [*trackers]:
                with _left_if_it_fails(trackers, name):
                    job(trackers[name])


@contextmanager
def _left_if_it_fails(trackers: dict[str, Tracker], name: str) -> Iterator[None]:
    """Remove a tracker with a warning in place of any error of the body."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - libraries raise anything, and no tracker ends a run
        trackers.pop(name, None)
        logger.warning('tracker = "%s" fails, and gets nothing more; the run goes on: %s', name, first_line(error))
