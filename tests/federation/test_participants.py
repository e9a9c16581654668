from collections import Counter

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import client_app
from fedddpm_app.config import ConfigError
from fedddpm_app.federation.nodes.participants import Participants
from fedddpm_app.federation.nodes.roll_call import RollCall
from fedddpm_app.inprocess.grid import InProcessGrid


def test_nodes_are_found_by_partition(grid):
    participants = RollCall(grid, 4, 1.0).start(0)
    assert [grid.contexts[node].node_config["partition-id"] for node in participants.node_of.values()] == [0, 1, 2, 3]


def test_too_few_nodes_end_the_wait_with_the_fix(run_config):
    grid = InProcessGrid(client_app.app, 6, run_config)
    del grid.contexts[1004], grid.contexts[1005]
    with pytest.raises(ConfigError, match=r"num-clients = 6, but after .* only 4 nodes .* 'num-supernodes=6'"):
        RollCall(grid, 6, 0.1).start(0)


def test_too_many_nodes_are_refused(run_config):
    grid = InProcessGrid(client_app.app, 5, run_config | {"num-clients": 4})
    with pytest.raises(ConfigError, match="num-clients = 4, but the nodes have num-partitions = 5: set num-clients"):
        RollCall(grid, 4, 60.0).start(0)


def test_two_nodes_with_one_partition_are_refused(run_config):
    app = ClientApp()

    @app.query()
    def identify(message, context):
        return Message(RecordDict({"metrics": MetricRecord({"partition-id": 0})}), reply_to=message)

    with pytest.raises(ConfigError, match="held by two nodes"):
        RollCall(InProcessGrid(app, 2, run_config), 2, 1.0).start(0)


def test_sampling_follows_seed_and_round_not_node_ids():
    first = Participants({p: 100 + p for p in range(10)})
    other_nodes = Participants({p: 900 - p for p in reversed(range(10))})
    chosen = [first.sample(3, seed=1, server_round=r) for r in range(1, 200)]
    assert chosen == [other_nodes.sample(3, seed=1, server_round=r) for r in range(1, 200)]
    assert all(len(set(c)) == 3 and c == sorted(c) for c in chosen)
    counts = Counter(p for c in chosen for p in c)
    assert min(counts.values()) > 30  # 199 * 3 / 10 is about 60 each
    assert chosen != [first.sample(3, seed=2, server_round=r) for r in range(1, 200)]


def test_zero_means_everyone():
    assert Participants({0: 5, 1: 6}).sample(0, seed=0, server_round=1) == [0, 1]
