"""Everything that the app uses from Flower's non-public modules: the reason why pyproject.toml bounds its version.

A new minor version of Flower may move any of it. Only this file then needs to change.
"""

import os
import sys
import threading
import time
from collections.abc import Callable

from flwr.app import Message
from flwr.common.config import parse_config_args
from flwr.common.constant import ErrorCode
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.secaggplus_utils import share_keys_plaintext_concat, share_keys_plaintext_separate
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.constant import FORCE_EXIT_TIMEOUT_SECONDS, TaskType
from flwr.supercore.exit import add_exit_handler
from flwr.supercore.exit.exit_handler import registered_exit_handlers
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, generate_key_pairs, public_key_to_bytes
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supercore.utils import get_flwr_home
from google.protobuf.message import DecodeError

__all__ = [
    "UNREADABLE",
    "ErrorCode",
    "NodeInfo",
    "Run",
    "TaskIdentity",
    "TaskType",
    "at_exit_of_flower",
    "bytes_to_public_key",
    "combine_shares",
    "create_shares",
    "decrypt",
    "encrypt",
    "generate_key_pairs",
    "generate_shared_key",
    "get_flwr_home",
    "is_deployed",
    "parse_config_args",
    "public_key_to_bytes",
    "set_message_id",
    "set_source",
    "share_keys_plaintext_concat",
    "share_keys_plaintext_separate",
    "wait_for_stop",
]


_WATCH_SECONDS = 0.2

# what a grid of a deployment raises while it decodes the objects of a reply, which are a client's bytes; errors of the
# connection to the SuperLink are other classes
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, DecodeError)


def is_deployed(run: Run) -> bool:
    """Return whether a run's nodes are real SuperNodes instead of a simulation."""
    return run.primary_task_type == TaskType.SERVER_APP


def set_source(message: Message, node: int) -> None:
    """Set the source node of a message: in a reply it is the client's text, and in Flower's errors it is missing."""
    message.metadata.__dict__["_src_node_id"] = node


def set_message_id(message: Message, message_id: str) -> None:
    """Set the id of a message, as Flower's own grids do when they push it."""
    message.metadata.__dict__["_message_id"] = message_id


def at_exit_of_flower(function: Callable[[], None]) -> None:
    """Call a function when Flower ends this process, at the end of the run or by a stop signal.

    A simulation's ServerApp runs in a thread, which no signal reaches. The main thread gets the signals, also that of
    `flwr stop`; either Flower calls the function, or Ray ends the main thread, which first ends the simulation. If the
    thread that called this then goes on, it waits for clients that are gone: the process ends without it. Outside of
    Flower's processes this does nothing.
    """
    if registered_exit_handlers:
        add_exit_handler(function, run_before_force_exit=True)
        threading.Thread(target=_after_main_thread, args=(function, threading.current_thread())).start()


def _ray_runs() -> bool:
    """Return whether this process is connected to Ray; without an import of Ray, it is not."""
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())


def wait_for_stop(seconds: float) -> None:
    """Wait for a stop of this process that may be under way: it ends the main thread, and then the process.

    Without a stop, this returns after ``seconds``; in the main thread it returns at once.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        main.join(seconds)
        if not main.is_alive():
            time.sleep(2 * FORCE_EXIT_TIMEOUT_SECONDS)


def _after_main_thread(function: Callable[[], None], server: threading.Thread) -> None:
    main, has_run = threading.main_thread(), False
    while main.is_alive():
        main.join(_WATCH_SECONDS)
        runs = _ray_runs()
        if (
            has_run and not runs
        ):  # Flower ends the simulation; the main thread may then wait for threads that wait for Ray
            break
        has_run = runs
    function()
    if server is not threading.main_thread():
        server.join(FORCE_EXIT_TIMEOUT_SECONDS)
        if server.is_alive():
            os._exit(1)
