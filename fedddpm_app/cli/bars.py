"""Progress bars: live on a terminal, redrawn in place in a notebook, and none elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID

_REDRAW_EVERY_SECONDS = 0.5  # in a notebook, where every picture of the bars is a message


class Bars(Progress):
    """Bars of rich, which a notebook shows as one output that changes.

    Parameters
    ----------
    *columns : ProgressColumn
        As for ``rich.progress.Progress``.
    console : Console
        The console of the bars.
    wanted : bool
        False for no bars on any console.

    Attributes
    ----------
    is_shown : bool
        Whether somebody sees the bars; otherwise lines have to say what they would show.
    """

    def __init__(self, *columns: ProgressColumn, console: Console, wanted: bool = True) -> None:
        super().__init__(*columns, console=console, disable=not (wanted and console.is_terminal))
        self.is_shown = wanted and (console.is_terminal or console.is_jupyter)
        self._in_notebook = wanted and console.is_jupyter
        self._output: Any = None
        self._drawn = 0.0

    def start(self) -> None:
        """Show the bars; a notebook shows none before there is one."""
        super().start()
        if self._in_notebook and self.tasks:
            self._draw()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """Change a bar."""
        super().update(task_id, **fields)
        if self._in_notebook and time.monotonic() - self._drawn >= _REDRAW_EVERY_SECONDS:
            self._draw()

    def stop(self) -> None:
        """Show the bars as they are at the end."""
        super().stop()
        if self._in_notebook and self.tasks:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        if self._output is None:
            self._output = display(self, display_id=True)
        else:
            self._output.update(self)
        self._drawn = time.monotonic()
