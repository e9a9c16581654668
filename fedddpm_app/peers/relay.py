"""The relay between peers: it passes submissions, votes and models on, decides nothing itself, and keeps the ledger.

A peer's turn comes when its submission is in the ledger: it scores the candidates that are new to it, chooses one, and
trains on from there. Turns of the same moment are simultaneous: all submissions enter first, then all vote, then all
choose. Peers that do not train vote with them. A peer that fails leaves, and its training is lost; it joins again at
the border of a round if it is connected, and takes a turn then. A newcomer that claims a peer's partition is no peer.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property

from fedddpm_app import weights as weights_module
from fedddpm_app.federation.errors import RoundFailedError, TooFewRepliesError
from fedddpm_app.federation.flower_internals import is_deployed
from fedddpm_app.federation.messages.records import ARRAYS
from fedddpm_app.federation.messages.replies import GONE, Reply, ReplyRefusedError
from fedddpm_app.federation.security_log import LEFT
from fedddpm_app.federation.server_state import load_named_state, named_state
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.peers.board import Board, Submission
from fedddpm_app.peers.book import Book
from fedddpm_app.peers.clock import VirtualClock, next_to_end
from fedddpm_app.peers.cost import steps_of
from fedddpm_app.peers.mail import SAMPLES, Mail
from fedddpm_app.peers.score import Score
from fedddpm_app.peers.trainings import Training, Trainings
from fedddpm_app.progress import logger
from fedddpm_app.weights import Weights

_STATE = ("board", "book", "trainings", "time", "is_virtual", "live", "numbers", "matched")


class Relay:
    """The state of a run of peers, and what happens next.

    Parameters
    ----------
    strategy : FederatedStrategy
        Its ``client_models`` are the models of the latest submissions; see also ``Mail``.
    samples_like : callable
        As of ``Mail``.
    on_submission : callable
        Called with each accepted submission, given its round's reply.

    Attributes
    ----------
    board, book : Board, Book
        Candidates and votes; the ledger.
    time : float
        Seconds of the clock since the genesis.
    is_virtual : bool
        Whether trainings end by the virtual clock, not by the arrival of their replies; fixed when the run begins.
    live : list of int
        The peers that have joined and not left, in ascending order.
    numbers : dict of int to int
        By peer that trains, the number of its submissions.
    trainings : Trainings
        Those under way.
    matched : dict of int to list of int
        By peer, its training images that samples matched; once per match.
    left : dict of int to str
        By peer that has left in this round, the reason.
    """

    def __init__(
        self,
        strategy: FederatedStrategy,
        samples_like: Callable[[], Weights],
        on_submission: Callable[[Reply], None],
    ) -> None:
        self._strategy, self._on_submission = strategy, on_submission
        self._settings, run = strategy.config.pdfed, strategy.config.run
        self._clock = VirtualClock(run.seed, self._settings.speed_spread)
        self._num_trainers = strategy.config.data.num_clients - self._settings.validators
        self.book = Book(strategy.recorder)
        self.board = Board(self._settings.own_vote, self._settings.novelty)
        self.time = 0.0
        self.is_virtual = self._settings.clock == "virtual"
        self.live: list[int] = []
        self.numbers = dict.fromkeys(range(self._num_trainers), 0)
        self.trainings = Trainings()
        self.matched: dict[int, list[int]] = {}
        self._began = 0.0  # the real time at which the clock would have been 0
        self._attempts = 0  # to find peers again, since the last submission
        self._mail = Mail(strategy, samples_like)
        self.left: dict[int, str] = {}

    def state_dict(self) -> dict[str, object]:
        """Return the state between two rounds, for a checkpoint."""
        return named_state(self, _STATE)

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continue from a checkpoint; the next round sends the trainings again that were under way."""
        load_named_state(self, state)

    def begin(self) -> None:
        """Choose the clock, and start the ledger."""
        self.is_virtual |= self._settings.clock == "auto" and not is_deployed(self._strategy.grid.run)
        self.book.begin(self._genesis, self._strategy.config.run.seed, self._settings)

    def run_round(self, server_round: int) -> None:
        """Go on until there are ``server_round`` submissions per peer that trains, or nobody can submit any more.

        Raises
        ------
        RoundFailedError
            If all peers that train are away, and none comes back within the time limits.
        """
        self.left = {}
        self._began = self._began or time.monotonic() - self.time
        self._send_again()
        self._meet()
        while sum(self.numbers.values()) < server_round * self._num_trainers:
            if self.trainings:
                self._next_event()
            elif not self._find_again():
                break

    # ---- who takes part -------------------------------------------------------------------------

    def _meet(self) -> None:
        """Let peers that are not connected leave, and those that are new or back join and take a turn."""
        present = self._strategy.clients.participants.owned
        for peer in [*self.live]:
            if peer not in present and peer not in self.trainings:
                self._leave(peer, GONE)
        newcomers = [peer for peer in present if peer not in self.live]
        self.live = sorted([*self.live, *newcomers])
        for peer in newcomers:
            self.book.add("joined", peer=peer, time=self.time)
        self._take_turns(newcomers)

    def _leave(self, peer: int, reason: str) -> None:
        self.live.remove(peer)
        self.trainings.pop(peer, None)
        self._mail.sent.discard(peer)
        self.left[peer] = reason
        self._strategy.clients.log.add(LEFT, partition=peer, reason=reason)
        self.book.add("left", peer=peer, time=self.time, reason=reason)
        logger.warning("client %d has left, and the others go on without it: %s", peer, reason)

    def _find_again(self) -> bool:
        """Wait for the peers that have submissions left, which are all away; return False if they do not come back.

        If no other peer has completed its submissions, this fails the run.
        """
        rounds = self._strategy.config.run.num_rounds
        missing = {peer: rounds - number for peer, number in self.numbers.items() if number < rounds}
        while missing and self._attempts <= self._strategy.config.waiting.max_round_retries:
            self._attempts += 1
            with suppress(TooFewRepliesError):  # ``present`` has logged who is away
                self._strategy.clients.present(len(self.live) + 1)
            self._meet()
            if self.trainings:
                return True
        if missing and len(missing) == self._num_trainers:
            peer, reason = next(iter(sorted(self.left.items())), (0, GONE))
            raise RoundFailedError(f"all {self._num_trainers} clients that train have left; client {peer}: {reason}")
        if missing:
            named = ", ".join(map(str, missing))
            logger.warning("the run goes on without %d submissions, of clients %s", sum(missing.values()), named)
        return False

    # ---- events ---------------------------------------------------------------------------------

    def _next_event(self) -> None:
        """Wait for the trainings that end next; their submissions enter, and their peers take their turns."""
        if self.is_virtual:
            peers = next_to_end({peer: training.end for peer, training in self.trainings.items()})
            self.time = self.trainings[peers[0]].end
            self._mail.wait_for_trainings(peers)
        else:
            peers = [self._mail.first_to_answer()]
            self.time = time.monotonic() - self._began
        self._take_turns([peer for peer in peers if self._enter(peer)])

    def _enter(self, peer: int) -> bool:
        """Enter a submission; return whether it is accepted."""
        strategy, training = self._strategy, self.trainings.pop(peer)
        try:
            reply = self._mail.take(peer)
            strategy.clients.admission.judge(reply, lambda: weights_module.norm(training.start))
        except ReplyRefusedError as error:
            self._leave(peer, str(error))
            return False
        strategy.clients.admission.learn_size(reply)
        weights, samples = (weights_module.copy(reply.load(record)) for record in (ARRAYS, SAMPLES))
        self.numbers[peer] = training.number
        self._attempts = 0
        submission = self.board.enter(peer, training.number, weights_module.digest(weights), samples)
        strategy.client_models = dict(sorted({**strategy.client_models, peer: weights}.items()))
        self.book.submission(submission, training, reply, self.time)
        self._on_submission(reply)
        return True

    # ---- turns ----------------------------------------------------------------------------------

    def _take_turns(self, peers: Sequence[int]) -> None:
        """Have peers vote, with all that do not train, then choose and train on."""
        strangers = self._strategy.clients.participants.newcomers  # one may hold the partition of a peer that trained
        for peer in [peer for peer in self.live if peer in strangers and peer not in self.trainings]:
            self._leave(peer, GONE)
        self._collect_votes([peer for peer in self.live if peer not in self.trainings])
        rounds = self._strategy.config.run.num_rounds
        starting = [peer for peer in peers if peer in self.live and self.numbers.get(peer, rounds) < rounds]
        for peer in starting:
            self._choose(peer)
        self._mail.ask_to_train(starting, self.trainings, self.matched)

    def _collect_votes(self, voters: Sequence[int]) -> None:
        """Have peers score the candidates that they have not scored."""
        new = {voter: unscored for voter in voters if (unscored := self.board.unscored(voter))}
        for voter, found in self._mail.ask_for_scores(new).items():
            if isinstance(found, str):
                self._leave(voter, found)
                continue
            for submission, score in zip(new[voter], found[1], strict=True):
                self._vote(voter, submission, found[0], score)

    def _vote(self, voter: int, submission: Submission, num_examples: int, score: Score) -> None:
        self.board.vote(voter, submission, num_examples, score)
        if self._settings.dedup:
            self.matched[voter] = [*self.matched.get(voter, []), *score.matches]
        self.book.vote(voter, submission, num_examples, score, self.board.value(score))

    def _choose(self, peer: int) -> None:
        """Choose the model that a peer trains on from; without candidates it is the initial one."""
        strategy, merges = self._strategy, self._settings.node == "merge"
        parents, start, digest = [self._genesis], strategy.initial_weights, self._genesis
        if self.board.candidates:
            chosen, value = self.board.choose(peer, among_others=merges)
            self.book.choice(peer, chosen, value)
            parents, start, digest = [chosen.digest], strategy.client_models[chosen.peer], chosen.digest
            own = self.board.candidates.get(peer)
            if merges and own is not None and own.peer != chosen.peer:
                both = sorted((chosen, own), key=lambda each: each.order)  # so that two peers get the same mean
                start = weights_module.weighted_mean((strategy.client_models[each.peer], 1) for each in both)
                parents, digest = [chosen.digest, own.digest], weights_module.digest(start)
        number, end = self.numbers[peer] + 1, 0.0
        if self.is_virtual:
            end = self.time + self._clock.duration(peer, number, steps_of(self._strategy, peer))
        self.trainings[peer] = Training(number, parents, end, start, digest)

    def _send_again(self) -> None:
        """Send the trainings of a checkpoint again; their bytes have been counted."""
        accounting, present = self._strategy.accounting, self._strategy.clients.participants.owned
        counted, missing = accounting.bytes_down, sorted(self.trainings.keys() - self._mail.sent)
        for peer in [peer for peer in missing if peer not in present]:
            self._leave(peer, GONE)
        self._mail.ask_to_train([peer for peer in missing if peer in present], self.trainings, self.matched)
        accounting.bytes_down = counted

    # ---- what is known --------------------------------------------------------------------------

    @cached_property
    def _genesis(self) -> str:
        return weights_module.digest(self._strategy.initial_weights)
