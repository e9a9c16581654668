"""PDFed on the quadratics: a peer's sample is its point, scored by its loss on the own examples; and faulty grids."""

import random
from typing import ClassVar

from flwr.app import Error, Message

from fedddpm_app.algorithms.pdfed import PDFed, train_peer
from fedddpm_app.federation.flower_internals import ErrorCode
from fedddpm_app.federation.messages.records import ARRAYS, NUM_EXAMPLES
from fedddpm_app.inprocess import simulate as engine
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.peers.ledger import LEDGER, verify
from fedddpm_app.peers.mail import SAMPLES, SCORE, SCORES, TRAIN
from fedddpm_app.peers.score import Score
from fedddpm_app.peers.votes import pack_scores
from fedddpm_app.training.actions import ActionAnswer, ClientAction
from tests.algorithms.problems import CLIENTS, RATE, ROUNDS, STEPS, Point, quadratic

SAME_SPEED = {"speed_spread": 1.0}


def loss_at(x, client):
    a, b = client
    return float((a / 2 * (x - b) ** 2).sum(1).mean())


def score_points(request):
    data = request.task.train_data(request.partition_id)
    own = data.batch(slice(None))
    points = [request.weights[f"{k}/x"] for k in range(len(request.weights))]
    found = [Score(loss_at(x, own), 0.0, 0, 0, []) for x in points]
    return ActionAnswer({NUM_EXAMPLES: len(data)}, {SCORES: pack_scores(found, request.config.pdfed.samples)})


def train_point(request):
    result, num_examples = train_peer(request)
    return ActionAnswer(
        {**result.metrics(), NUM_EXAMPLES: num_examples},
        {ARRAYS: result.weights, SAMPLES: {"x": result.weights["x"]}},
    )


class Points(PDFed):
    """See the module; ``latest`` is the strategy of the last run."""

    client_actions: ClassVar = {
        SCORE: ClientAction(score_points, metrics=(NUM_EXAMPLES,), records=(SCORES,), exact=True),
        TRAIN: ClientAction(train_point, PDFed.client_actions[TRAIN].metrics, records=(ARRAYS, SAMPLES)),
    }
    latest = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Points.latest = self

    @classmethod
    def check_scores(cls, config):
        pass

    def check_model(self):
        pass

    def samples_like(self):
        return {"x": self.initial_weights["x"].to("meta")}


class Result:
    """What a run of ``Points`` gives: models and ledger."""

    def __init__(self, strategy, final, history):
        self.models = {peer: weights["x"].numpy() for peer, weights in strategy.client_models.items()}
        self.ledger = strategy.recorder.entries[LEDGER]
        self.final, self.history = final["x"].numpy(), history
        verify(self.ledger)

    def of(self, kind, peer=None):
        return [entry for entry in self.ledger if entry["kind"] == kind and peer in (None, entry["peer"])]


def run_peers(clients=CLIENTS, rounds=ROUNDS, local_steps=STEPS, lr=RATE, algorithm=Points, **hyper):
    final, history = simulate(algorithm, Point(), quadratic, clients, rounds, local_steps, lr, **hyper)
    return Result(Points.latest, final, history)


class Shuffled(InProcessGrid):
    """Clients work in a random order, and their replies arrive late and in another one."""

    seed = 0

    def __init__(self, *args):
        super().__init__(*args)
        self._random, self._ready = random.Random(self.seed), {}

    def pull_messages(self, message_ids):
        waiting = [*self._waiting]
        self._random.shuffle(waiting)
        for message_id in waiting:
            if self._random.random() < 0.5:
                self._ready[message_id] = self._answer(self._waiting.pop(message_id))
        wanted = [message_id for message_id in message_ids if message_id in self._ready]
        return [self._ready.pop(message_id) for message_id in wanted if self._random.random() < 0.3]


class Failing(InProcessGrid):
    """Answers by an error, in place of a client, where ``fails(partition, action, count)``: its count-th message."""

    def __init__(self, *args):
        super().__init__(*args)
        self._counts = {}

    @staticmethod
    def fails(partition, action, count):
        return False

    def _answer(self, message):
        partition, action = message.metadata.dst_node_id - 1000, message.metadata.message_type.removeprefix("train.")
        key = (partition, action)
        self._counts[key] = self._counts.get(key, 0) + 1
        if self.fails(partition, action, self._counts[key]):
            return Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)
        return super()._answer(message)


def on(monkeypatch, grid, **attributes):
    """Have ``simulate`` use this grid, with attributes."""
    monkeypatch.setattr(engine, "InProcessGrid", type("Grid", (grid,), attributes))
