"""A small process beside a simulation, ``python -m fedddpm_app.launch.guardian HOME``, for a command that is killed.

The SuperLink of a simulation would otherwise stay for ever. While the command lives, it holds the lock of the home, and
the guardian only waits. If the command is killed, the run goes on; after its end the guardian removes the rest.
"""

import sys
import time
from pathlib import Path

from fedddpm_app.disk.owned import LOCK, is_held

_POLL_SECONDS = 2.0
_ATTEMPTS = 10  # then the next run or `fedddpm clean` removes the home


def guard(home: Path, poll_seconds: float = _POLL_SECONDS) -> None:
    """Wait until the command of a home has ended, then until its run has ended, and remove the home."""
    while is_held(home / LOCK):
        time.sleep(poll_seconds)
    if not home.exists():
        return

    from fedddpm_app.launch.homes import end_home, headless  # only a killed command needs it

    for _ in range(_ATTEMPTS):
        while headless(home):
            time.sleep(poll_seconds)
        if end_home(home):
            return
        time.sleep(poll_seconds)


if __name__ == "__main__":
    guard(Path(sys.argv[1]))
