"""A check of the sites' data before training: data that cannot be loaded are reported at once, by site and reason."""

from flwr.serverapp import Grid

from fedddpm_app.config import Config
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.messages.messaging import exchange
from fedddpm_app.federation.messages.records import LOOK
from fedddpm_app.federation.messages.replies import ReplySpec
from fedddpm_app.federation.messages.streaming import ReplyStream
from fedddpm_app.federation.ports import Recorder
from fedddpm_app.progress import logger


def survey_sites(clients: Clients, grid: Grid, config: Config, recorder: Recorder) -> None:
    """Have every client load its images; write the numbers of images, and the failed clients, to ``stats.jsonl``.

    A client that fails may still be sampled in every round: its site may repair the data. The number of images that it
    may then claim is limited, see ``Admission.check_examples``. A resumed run has the line of its first start, and
    warns of clients that have another number of images now.
    """
    partitions, timeout = clients.participants.present, config.waiting.round_timeout
    messages = clients.address(partitions, LOOK, {}, 0, timeout)
    replies = exchange(grid, messages, timeout, clients.participants.under_way)
    stream = ReplyStream(clients, replies, partitions, "the check of the data", ReplySpec(metrics=()))
    for reply in stream.as_they_come():
        clients.admission.learn_size(reply)
    clients.admission.finish_count()
    sizes = clients.admission.sizes
    in_order = [sizes.get(partition) for partition in range(config.data.num_clients)]
    began = next((row["data/num_examples"] for row in recorder.stats if row["phase"] == "data"), None)
    if not isinstance(began, list):
        recorder.append({"phase": "data", "data/num_examples": in_order, **stream.left_out("data")})
        return
    for partition, (before, now) in enumerate(zip(began, in_order, strict=True)):
        if before != now and None not in (before, now):
            text = "client %d began the run with %d training images, and has %d now: its data have changed"
            logger.warning(text, partition, before, now)
