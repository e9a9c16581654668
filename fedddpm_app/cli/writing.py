"""The end of a command whose result cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from fedddpm_app.cli.common import FAILED, say
from fedddpm_app.recording.files import RecordingError


@contextmanager
def failing_to_write() -> Iterator[None]:
    """Print a ``RecordingError`` as a sentence, and exit with code 1."""
    try:
        yield
    except RecordingError as error:
        say(str(error))
        raise typer.Exit(FAILED) from error
