"""Many rounds in which a tenth of the answers fail at random, in different ways."""

from pathlib import Path

import psutil
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.clientapp import ClientApp

import client_app
import server_app
from fedddpm_app.inprocess.grid import run_inprocess
from fedddpm_app.progress import logger
from fedddpm_app.seeding import derive_seed
from fedddpm_app.transport.layout import Layout, read
from tests.conftest import RunDirectory


def with_data(message: Message, data: bytes) -> None:
    """Replace the weights of an answer in the flat transport."""
    array = message.content["arrays"]["weights"]
    message.content["arrays"] = ArrayRecord({"weights": Array(array.dtype, (len(data),), array.stype, data)})


def diverged(message: Message) -> None:
    weights = {name: tensor * float("nan") for name, tensor in read(message.content["arrays"]["weights"].data).items()}
    with_data(message, Layout(weights).pack(weights))


def cut_off(message: Message) -> None:
    with_data(message, message.content["arrays"]["weights"].data[:-5])


def without_metrics(message: Message) -> None:
    message.content["metrics"] = MetricRecord()


def without_examples(message: Message) -> None:
    message.content["metrics"]["num-examples"] = 0


def crashed(message: Message) -> None:
    raise MemoryError("the client has no memory left")


FAILURES = [diverged, cut_off, without_metrics, without_examples, crashed]


class Unreliable(ClientApp):
    """The real ClientApp, of which a tenth of the trainings fail; the choice depends on round and partition only."""

    def __init__(self) -> None:
        super().__init__()
        self.failed: dict[int, set[int]] = {}
        self.rss_mb: dict[int, float] = {}

    def __call__(self, message, context):
        answer = client_app.app(message, context)
        if not message.metadata.message_type.startswith("train"):
            return answer
        server_round, partition = int(message.content["config"]["server-round"]), context.node_config["partition-id"]
        self.rss_mb[server_round] = psutil.Process().memory_info().rss / 1e6
        chance = derive_seed(0, "soak", server_round, partition)
        if chance % 10 == 0:
            self.failed.setdefault(server_round, set()).add(partition)
            FAILURES[chance // 10 % len(FAILURES)](answer)
        return answer


def soak(run_config, num_rounds, num_clients):
    """Run the two apps, and check that each round has the replies of exactly the clients that did not fail."""
    clients = Unreliable()
    tiny = {
        "num-clients": num_clients,
        "num-rounds": num_rounds,
        "local-steps": 1,
        "batch-size": 4,
        "correction-steps": 1,
    }
    tiny |= {"partition": "iid", "transport": "flat", "eval-every": 0, "preview-every": 0, "preview-images": 1}
    config = run_config | tiny
    run_inprocess(server_app.app, clients, config, num_clients)
    run = RunDirectory(Path(config["output-dir"]) / config["run-name"])
    assert run.summary["status"] == "completed"
    assert [row["round"] for row in run.rounds()] == list(range(1, num_rounds + 1))
    (pretraining,) = (row for row in run.stats if row["phase"] == "pretrain")
    assert set(pretraining["pretrain/clients"]) == set(range(num_clients)) - clients.failed.get(0, set())
    for row in run.rounds():
        failed = clients.failed.get(row["round"], set())
        assert {int(partition) for partition in row["train/client_loss"]} == set(row["clients"]) - failed
        assert {int(partition) for partition in row.get("train/left_out", {})} == failed
    return clients


@pytest.mark.slow
def test_twenty_rounds_lose_no_good_reply(run_config):
    clients = soak(run_config, 20, 5)
    assert sum(map(len, clients.failed.values())) > 5


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_hundred_rounds_lose_no_good_reply_and_memory_stays_flat(run_config):
    clients = soak(run_config, 200, 10)
    total = sum(map(len, clients.failed.values()))
    rss_mb = [round(clients.rss_mb[server_round]) for server_round in (20, 100, 200)]
    logger.info("%d answers failed; RSS in rounds 20, 100 and 200: %s MB", total, rss_mb)  # pytest -s shows it
    assert total > 100
    assert clients.rss_mb[200] < 1.1 * clients.rss_mb[20]
