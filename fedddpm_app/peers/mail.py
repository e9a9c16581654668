"""The messages of the relay: requests to train and to score, and their answers."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from fedddpm_app.config import one_line
from fedddpm_app.federation.messages.conversation import Answer, Conversation
from fedddpm_app.federation.messages.records import ARRAYS
from fedddpm_app.federation.messages.replies import Reply, ReplyRefusedError
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.peers.board import Submission
from fedddpm_app.peers.cost import most_steps
from fedddpm_app.peers.score import Score
from fedddpm_app.peers.trainings import Trainings
from fedddpm_app.peers.votes import scores_like, unpack_scores
from fedddpm_app.training.actions import Value
from fedddpm_app.weights import Weights

SCORE, TRAIN = "score", "train_and_submit"  # the client actions
SAMPLES, SCORES = "samples", "scores"  # records in their answers
NUMBER, MATCHED = "number", "matched"  # values in a request to train


class Mail:
    """Asks peers for trainings, whose answers come later, and for scores, which are awaited.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its ``client_actions`` include ``score`` and ``train_and_submit``.
    samples_like : callable
        Returns the shapes of the samples of a submission, as meta tensors.

    Attributes
    ----------
    sent : set of int
        The peers that this process has asked to train, and whose answer was not taken.
    """

    def __init__(self, strategy: FederatedStrategy, samples_like: Callable[[], Weights]) -> None:
        self._strategy, self._samples_like = strategy, samples_like
        self.sent: set[int] = set()
        self._trained: dict[int, Answer] = {}  # not taken yet, in the order of arrival
        self._voted: dict[int, Answer] = {}

    def ask_to_train(self, peers: Sequence[int], trainings: Trainings, matched: Mapping[int, Sequence[int]]) -> None:
        """Ask peers for the trainings that were started, with the numbers of their images that were matched."""
        call = self._strategy.action_call(TRAIN)
        for group in trainings.by_start(peers):
            start = trainings[group[0]].start
            values: dict[int, dict[str, Value]] = {
                peer: {NUMBER: trainings[peer].number, MATCHED: [*matched.get(peer, [])]} for peer in group
            }
            like = {ARRAYS: start, SAMPLES: self._samples_like()}
            self._conversation.ask(call, group, start, values, like, self._check_steps)
        self.sent |= {*peers}

    def wait_for_trainings(self, peers: Sequence[int]) -> None:
        """Wait for the answers of peers; those of others wait until they are taken."""
        while not all(peer in self._trained for peer in peers):
            self._receive()

    def first_to_answer(self) -> int:
        """Wait for an answer to a request to train; return the peer whose answer came first."""
        while not self._trained:
            self._receive()
        return next(iter(self._trained))

    def take(self, peer: int) -> Reply:
        """Return a peer's checked submission; raise ``ReplyRefusedError`` if it cannot be used."""
        self.sent.discard(peer)
        return self._trained.pop(peer).accept()

    def ask_for_scores(self, wanted: Mapping[int, Sequence[Submission]]) -> "dict[int, tuple[int, list[Score]] | str]":
        """Have peers score submissions, at the same time.

        Parameters
        ----------
        wanted : mapping of int to sequence of Submission
            By peer, at least one.

        Returns
        -------
        dict
            By peer in ascending order, its number of training images and its scores, or the reason why there are none.
        """
        groups: dict[tuple[str, ...], list[int]] = {}
        for peer, submissions in wanted.items():
            groups.setdefault(tuple(each.key for each in submissions), []).append(peer)
        call, num_samples = self._strategy.action_call(SCORE), self._strategy.config.pdfed.samples
        for group in groups.values():
            submissions = wanted[group[0]]
            samples = {f"{k}/{name}": each for k, s in enumerate(submissions) for name, each in s.samples.items()}
            like = {SCORES: scores_like(len(submissions), num_samples)}
            self._conversation.ask(call, group, samples, like=like, first=True)
        while len(self._voted) < len(wanted):
            self._receive()
        found = {peer: _scores_of(self._voted[peer]) for peer in sorted(wanted)}
        self._voted = {}
        return found

    def _check_steps(self, reply: Reply) -> None:
        """Refuse a submission that claims other steps than a training of this client can have."""
        steps, most = reply.number("steps"), most_steps(self._strategy, reply)
        if not (steps.is_integer() and 0 <= steps <= most):
            raise ReplyRefusedError(f"steps is {steps:g}, not a whole number from 0 to {most}")

    def _receive(self) -> None:
        answer = self._conversation.receive()
        answers = self._trained if answer.request.call.name == TRAIN else self._voted
        answers[answer.request.partition] = answer

    @cached_property
    def _conversation(self) -> Conversation:
        strategy = self._strategy
        under_way = strategy.clients.participants.under_way
        return Conversation(strategy.grid, strategy.config.waiting.round_timeout, under_way)


def _scores_of(answer: Answer) -> tuple[int, list[Score]] | str:
    try:
        reply = answer.accept()
        return reply.num_examples, unpack_scores(reply.load(SCORES), reply.num_examples)
    except ReplyRefusedError as error:
        return str(error)
    except ValueError as error:
        return one_line(f"its scores cannot be true: {error}")
