"""The command in a notebook: ``%fedddpm run ...``, with bars and tables that fit there."""

import shlex
import warnings
from typing import Any

from fedddpm_app.cli.commands import app


def register(shell: Any) -> None:
    """Register the line magic ``%fedddpm`` with an IPython shell."""
    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's bars are not shown
    shell.register_magic_function(run_line, "line", "fedddpm")


def run_line(line: str) -> None:
    """Run the command with the words of a line, in this process.

    Raises
    ------
    UsageError
        When its exit code is not 0, so that a notebook that runs all its cells stops here.
    """
    from IPython.core.error import UsageError

    try:
        app(shlex.split(line), prog_name="fedddpm")
    except SystemExit as end:
        if end.code:
            raise UsageError(f"%fedddpm {line}: exit code {end.code}") from None
