"""The debugging engine: server and clients run one after the other in one process, without Ray.

With ``fedddpm run --engine inprocess``, breakpoints work, tracebacks are complete, and two tiny rounds take a
fraction of a second. The metrics equal the metrics of a simulation bit for bit.
"""

import copy
import itertools
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedddpm_app.config import Scalar
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.flower_internals import NodeInfo, Run, TaskIdentity, TaskType, set_message_id
from fedddpm_app.federation.reasons import one_line
from fedddpm_app.federation.records import NUM_PARTITIONS, PARTITION_ID
from fedddpm_app.progress import logger

_FIRST_NODE = 1000
_CLIENT_FAILED = 2


class InProcessGrid(Grid):
    """A ``Grid`` whose nodes run a ClientApp as soon as they get a message.

    Parameters
    ----------
    client_app : ClientApp
        Called as ``client_app(message, context)``. An exception becomes an error reply, ``SystemExit`` included, and so
        does an answer that is not a message. Ctrl-C ends the run.
    num_clients : int
        Number of nodes, one per partition.
    run_config : dict
        The clients' ``context.run_config``.
    """

    def __init__(self, client_app: ClientApp, num_clients: int, run_config: dict[str, Scalar]) -> None:
        run_id = secrets.randbits(63)  # as in Flower, so that no two runs share a client's state
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, 1, 1
        self._client_app = client_app
        self._run = Run.create_empty(run_id)
        self._run.primary_task_type = TaskType.SIMULATION
        self._ids = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._failures: dict[str, BaseException] = {}
        self.contexts = {
            _FIRST_NODE + partition: Context(
                run_id=run_id,
                node_id=_FIRST_NODE + partition,
                node_config={PARTITION_ID: partition, NUM_PARTITIONS: num_clients},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for partition in range(num_clients)
        }

    def set_run(self, run: Run) -> None:
        """Keep the run's description."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run's description."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message, as ``Message(...)`` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of all nodes."""
        return list(self.contexts)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return all nodes."""
        return (NodeInfo(node_id=node_id) for node_id in self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run the ClientApp on each message; ``pull_messages`` returns the replies."""
        pushed = []
        for message in messages:
            message_id = f"message-{next(self._ids)}"
            set_message_id(message, message_id)
            self._replies[message_id] = self._answer(message)
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to the given messages, once."""
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and return their replies."""
        return self.pull_messages(self.push_messages(messages))

    @contextmanager
    def blame_clients(self) -> Iterator[None]:
        """Give a ``RoundFailedError`` of the body the client's exception that it quotes as its cause."""
        try:
            yield
        except RoundFailedError as error:
            quoted = (failure for text, failure in self._failures.items() if text and text in str(error))
            raise error from next(quoted, error.__cause__)

    def _answer(self, message: Message) -> Message:
        context = self.contexts[message.metadata.dst_node_id]
        server = TaskIdentity.node_id
        try:
            TaskIdentity.node_id = context.node_id
            reply = self._client_app(copy.copy(message), context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__} instead of a Message")
            return reply
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a client's exception becomes its reply, as in Flower
            text = one_line(str(error))
            if text not in self._failures:  # log its traceback once, not for every client and round
                logger.info("client %s failed:", context.node_config.get(PARTITION_ID, context.node_id), exc_info=error)
                self._failures[text] = error
            return Message(Error(_CLIENT_FAILED, f"{type(error)}:<'{error}'>"), reply_to=message)  # Flower's form
        finally:
            TaskIdentity.node_id = server


def run_inprocess(
    server_app: ServerApp, client_app: ClientApp, run_config: dict[str, Scalar], num_clients: int
) -> None:
    """Run a ServerApp with ``num_clients`` in-process clients to its end; its exceptions are not caught."""
    grid = InProcessGrid(client_app, num_clients, run_config)
    context = Context(
        run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    with grid.blame_clients():
        server_app(grid=grid, context=context)
