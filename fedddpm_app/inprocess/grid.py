"""The debugging engine: server and clients run one after the other in one process, without Ray.

With ``fedddpm run --engine inprocess``, breakpoints work, tracebacks are complete, and two tiny rounds take a
fraction of a second. The metrics equal the metrics of a simulation bit for bit.
"""

import copy
import itertools
import secrets
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedddpm_app.config import Scalar, one_line
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.flower_internals import NodeInfo, Run, TaskIdentity, TaskType, set_message_id
from fedddpm_app.federation.messages.records import NUM_PARTITIONS, PARTITION_ID
from fedddpm_app.progress import logger

_FIRST_NODE = 1000
_CLIENT_FAILED = 2
_PULL_SECONDS = 0.1
_LONGEST_TRACE = 20_000  # characters of a client's traceback in the log


class InProcessGrid(Grid):
    """A ``Grid`` whose nodes run a ClientApp one after the other, when their replies are pulled.

    Parameters
    ----------
    client_app : ClientApp
        Called as ``client_app(message, context)``. An exception becomes an error reply, ``SystemExit`` included, and so
        does an answer that is not a message. Ctrl-C ends the run, and so does a stop signal, by a subclass of
        ``SystemExit``.
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
        self._waiting: dict[str, Message] = {}
        self._logged: set[str] = set()
        self._failure: tuple[str, BaseException] | None = None  # the last one alone: its frames hold a model and data
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
        """Keep the messages until their replies are pulled."""
        pushed = []
        for message in messages:
            message_id = f"message-{next(self._ids)}"
            set_message_id(message, message_id)
            self._waiting[message_id] = message
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the ClientApp on given messages, in the order in which they were pushed, and return the replies.

        It returns after a short time: the server then uses a reply before the next client works.
        """
        wanted, began, replies = set(message_ids), time.monotonic(), []
        for message_id in [i for i in self._waiting if i in wanted]:
            replies.append(self._answer(self._waiting.pop(message_id)))
            if time.monotonic() - began > _PULL_SECONDS:
                break
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push messages and return their replies."""
        missing, replies = set(self.push_messages(messages)), []
        while missing:
            arrived = list(self.pull_messages(missing))
            missing -= {reply.metadata.reply_to_message_id for reply in arrived}
            replies += arrived
        return replies

    @contextmanager
    def blame_clients(self) -> Iterator[None]:
        """Give a ``RoundFailedError`` of the body the client's exception that it quotes as its cause."""
        try:
            yield
        except RoundFailedError as error:
            text, failure = self._failure or ("", None)
            raise error from (failure if text and text in str(error) else error.__cause__)

    def _answer(self, message: Message) -> Message:
        context = self.contexts[message.metadata.dst_node_id]
        server = TaskIdentity.node_id
        try:
            TaskIdentity.node_id = context.node_id
            reply = self._client_app(_own_copy(message), context)
            if not isinstance(reply, Message):
                raise TypeError(f"the ClientApp returned {type(reply).__name__} instead of a Message")
            return reply
        except (Exception, SystemExit) as error:
            if isinstance(error, SystemExit) and type(error) is not SystemExit:
                raise  # not the client's own sys.exit
            text = one_line(str(error))
            self._failure = text, error
            if text not in self._logged:  # log its traceback once, not for every client and round
                partition = context.node_config.get(PARTITION_ID, context.node_id)
                trace = "".join(traceback.format_exception(error))
                logger.info("client %s failed:\n%s", partition, trace[:_LONGEST_TRACE])
                self._logged.add(text)
            return Message(Error(_CLIENT_FAILED, f"{type(error)}:<'{error}'>"), reply_to=message)  # Flower's form
        finally:
            TaskIdentity.node_id = server


def _own_copy(message: Message) -> Message:
    """Return a message as another process would get it: what a client writes into its weights stays with it."""
    copied = copy.copy(message)
    if message.has_content():
        copied.content = RecordDict(
            {name: _own_record(r) if isinstance(r, ArrayRecord) else r for name, r in message.content.items()}
        )
    return copied


def _own_record(record: ArrayRecord) -> ArrayRecord:
    arrays = {
        name: Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=bytes(bytearray(array.data)))
        for name, array in record.items()
    }
    return ArrayRecord(arrays)


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
