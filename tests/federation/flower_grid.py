"""Flower's own grid of a deployment, on a SuperLink in memory whose nodes answer with any objects."""

from collections.abc import Callable

from flwr.app import Message, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.runtime_pb2 import GetNodesResponse, PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from fedddpm_app.federation.flower_internals import set_message_id

RUN = 5


class SuperLinkInMemory:
    """The calls of the Runtime API that ``HttpGrid`` makes. A reply can be pulled once, as from Flower's SuperLink.

    Parameters
    ----------
    nodes : sequence of int
        The connected nodes.
    answer : callable
        Called with a node and a request without content; returns a reply.
    spoil : callable
        Called with a node and its reply's objects, by their ids; changes the bytes in place.
    """

    def __init__(
        self,
        nodes: list[int],
        answer: Callable[[int, Message], Message],
        spoil: Callable[[int, dict[str, bytes]], None],
    ) -> None:
        self._nodes, self._answer, self._spoil = nodes, answer, spoil
        self._replies, self._objects = {}, {}

    def GetNodes(self, request):  # noqa: N802
        return GetNodesResponse(nodes=[NodeInfo(node_id=node) for node in self._nodes])

    def PushMessages(self, request):  # noqa: N802
        for proto in request.messages_list:
            about = proto.metadata
            message = Message(RecordDict(), dst_node_id=about.dst_node_id, message_type=about.message_type)
            set_message_id(message, about.message_id)
            reply = self._answer(about.dst_node_id, message)
            objects = {key: each.deflate() for key, each in get_all_nested_objects(reply).items()}
            set_message_id(reply, reply.object_id)
            self._replies[about.message_id] = message_to_proto(reply), get_object_tree(reply)
            self._spoil(about.dst_node_id, objects)
            self._objects |= objects
        return PushAppMessagesResponse(message_ids=[proto.metadata.message_id for proto in request.messages_list])

    def PullMessages(self, request):  # noqa: N802
        found = [self._replies.pop(key) for key in request.message_ids if key in self._replies]
        protos, trees = [list(each) for each in zip(*found, strict=True)] or ([], [])
        return PullAppMessagesResponse(messages_list=protos, message_object_trees=trees)

    def PushObject(self, request):  # noqa: N802
        raise AssertionError("the SuperLink asked for no object")

    def PullObject(self, request):  # noqa: N802
        content = self._objects[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request):  # noqa: N802
        return None


def deployed_grid(monkeypatch, nodes, answer, spoil=lambda node, objects: None) -> HttpGrid:
    """Return Flower's grid of a deployment on a ``SuperLinkInMemory``."""
    link = SuperLinkInMemory(nodes, answer, spoil)
    monkeypatch.setattr(RuntimeHttpClient, "from_server_address", lambda **_: link)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN, 1, 1
    grid = HttpGrid(token="any")
    grid.set_run(Run.create_empty(RUN))
    return grid
