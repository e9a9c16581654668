"""What the server knows of its clients, against which it judges replies of the right form.

A reply is refused if it claims more images than its client has, or if its change of the weights, or a further record,
is out of all proportion. Replies are judged in the order of the partition ids, so that the verdicts do not depend on
the order of arrival, and each reply is judged when it is its turn, so that no round is held in memory.

A further record, such as SCAFFOLD's change of the control variate, has no size of its own to compare with, and the
change of a client that takes part for the first time is larger than later ones. Its measure is thus the median of the
accepted norms, or of the first ones if that is larger. The first replies wait until there are enough of them.
"""

import math
import statistics
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedddpm_app.config import AdmissionConfig, Config, TrainingConfig
from fedddpm_app.federation.messages.records import NUM_EXAMPLES
from fedddpm_app.federation.messages.replies import Reply, ReplyRefusedError
from fedddpm_app.progress import logger

_LEAST_NORMS = 3  # fewer accepted norms have no median to rely on
_LONGEST_HISTORY = 1000  # accepted norms; older ones do not count any more
_FIRST_SHARE = 0.1  # of the model's own norm, in place of a median that is not known yet
_LEAST_SHARE = 0.01  # of the model's own norm: clients that send no change do not make every change too large
_COUNT_AGAIN = "stop and resume the run to count its images again"
_FIRST_REFERENCE = "tenth of the norm of the model's own weights"
_GROWTH_OF_SITES = 2  # a site may have so many times the images that it had at the start of the run
_MOST_NAMED = 5  # clients of a warning
_DECISIVE = 0.9  # a larger share of all images decides a weighted mean alone


class Admission:
    """Judges replies by the images of their clients, and by the norms of the updates accepted so far.

    Parameters
    ----------
    config : Config
        The run's config.

    Attributes
    ----------
    sizes : dict of int to int
        By partition, the number of training images, as far as the server knows it: from its own copy of the data, from
        the check of the sites' data, or from the client's first accepted reply. A site may add images during a run.
    history : dict of str to list of float
        By record name, the norms of what was accepted, in the order of the rounds and partitions: under ``arrays`` the
        norms of the changes of the weights, under ``Exchanged.kind`` those of a part of them, otherwise the norms of
        the further records. It is replaced, not changed.
    """

    def __init__(self, config: Config) -> None:
        self.sizes: dict[int, int] = {}
        self.history: dict[str, list[float]] = {}
        self._limits = config.admission
        self._most = config.data.max_examples_per_client
        self._held_out = config.data.held_out_fraction
        self._growth = _GROWTH_OF_SITES if config.data.partition == "sites" else 1
        self._counted = 0
        self._is_private = config.client_dp.budget.is_private  # then no client decides about another one

    def state_dict(self) -> dict[str, object]:
        """Return what is known so far, for a checkpoint."""
        return {"sizes": dict(self.sizes), "history": dict(self.history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what a checkpoint knows; sizes that the server has read itself stay."""
        self.sizes = state["sizes"] | self.sizes
        self.history = {record: [*norms] for record, norms in state["history"].items()}

    # ---- the number of images -------------------------------------------------------------------

    def check_examples(self, partition: int, count: int, held_out: bool = False) -> None:
        """Raise ``ReplyRefusedError`` if a client claims more images than it has.

        Parameters
        ----------
        partition : int
            The client's partition.
        count : int
            The number in its reply.
        held_out : bool
            Whether it counts images that the client evaluated on, not those that it trained on.
        """
        if count > self._most:
            raise ReplyRefusedError(f"{NUM_EXAMPLES} is {count}, more than max-examples-per-client = {self._most}")
        size = self.sizes.get(partition)
        if size is None:
            if self._counted and count > self._counted:
                raise ReplyRefusedError(
                    f"{NUM_EXAMPLES} is {count}, but it did not pass the check of the data: at most {self._counted} "
                    f"images are accepted, as many as all checked clients have together; {_COUNT_AGAIN}"
                )
            return
        most, kind = size * self._growth, "images"
        if held_out:
            most, kind = self._most_held_out(most), "held-out images"
        if count > most:
            had = f"it has {most} {kind}"
            if self._growth > 1:
                had = f"it had {size} images at the start: at most {most} {kind} are accepted; {_COUNT_AGAIN}"
            raise ReplyRefusedError(f"{NUM_EXAMPLES} is {count}, but {had}")

    def learn_size(self, reply: Reply) -> None:
        """Store the size of a client that is not known yet."""
        self.sizes.setdefault(reply.partition_id, reply.num_examples)

    def finish_count(self) -> None:
        """Limit a client that is not counted yet to as many images as all counted clients have together."""
        self._counted = 0 if self._is_private else sum(self.sizes.values())

    def _most_held_out(self, size: int) -> int:
        """Return the largest number of held-out images beside ``size`` training images: see ``held-out-fraction``."""
        share = self._held_out
        return max(1, math.ceil((size + 0.5) * share / (1 - share) + 0.5))

    # ---- the norm of an update ------------------------------------------------------------------

    def judge(
        self, reply: Reply, own_norm: Callable[[], float], first: Mapping[str, list[float]] = types.MappingProxyType({})
    ) -> None:
        """Add a training reply's norms to the history, or raise ``ReplyRefusedError`` if one is too large.

        Parameters
        ----------
        reply : Reply
            The next reply, in the order of the partition ids.
        own_norm : callable
            Returns the norm of the weights that the change is measured from.
        first : mapping of str to list of float
            By further record, the norms to compare with while few are accepted, see ``first_norms``.
        """
        norms = dict(reply.record_norms)
        if reply.update_norm is not None:
            norms[reply.kind] = reply.update_norm
        for record, norm in norms.items():
            known = self.history.get(record, [])
            if record == reply.kind:
                refusal = _refusal(self._limits, norm, known, own_norm)
            else:
                refusal = _refusal_of_record(self._limits, record, norm, max(known, first.get(record, []), key=len))
            if refusal:
                raise ReplyRefusedError(refusal)
        self.history = self.history | {r: _bounded([*self.history.get(r, []), norm]) for r, norm in norms.items()}

    def first_norms(self, records: Iterable[str], norms: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
        """Return, by further record, just enough norms to compare with; empty if there are too few.

        ``norms`` are those of the next replies in the order of the partition ids; the accepted norms come first.
        """
        found: dict[str, list[float]] = {}
        for record in records:
            known = self.history.get(record, [])
            found[record] = [*known, *(each[record] for each in norms[: max(0, _LEAST_NORMS - len(known))])]
        return found if all(len(each) >= _LEAST_NORMS for each in found.values()) else {}

    def judge_together(self, replies: Sequence[Reply], own_norm: Callable[[], float]) -> dict[int, str]:
        """Return, by partition, the reason why a reply of one exchange is out of proportion beside the others."""
        norms = {reply.partition_id: reply.update_norm for reply in replies if reply.update_norm is not None}
        verdicts = self.too_large(norms, own_norm)
        for record in sorted({record for reply in replies for record in reply.record_norms}):
            of_record = {reply.partition_id: reply.record_norms[record] for reply in replies}
            for partition, norm in of_record.items():
                refusal = _refusal_of_record(self._limits, record, norm, [*of_record.values()])
                if refusal:
                    verdicts.setdefault(partition, refusal)
        return verdicts

    def too_large(self, norms: Mapping[int, float], own_norm: Callable[[], float]) -> dict[int, str]:
        """Return, by partition, the reason why an update is too large beside the others of the same phase."""
        together = [*norms.values()]
        verdicts = {p: _refusal(self._limits, norm, together, own_norm) for p, norm in sorted(norms.items())}
        return {partition: refusal for partition, refusal in verdicts.items() if refusal}


def _refusal(limits: AdmissionConfig, norm: float, others: list[float], own_norm: Callable[[], float]) -> str:
    """Return the reason to refuse an update of this norm; empty if it is not too large."""
    key = f'max-update-norm = "{limits.max_update_norm}"'
    if limits.norm_limit:
        return f"its update has the norm {norm:.3g}, more than {key}" if norm > limits.norm_limit else ""
    if not limits.norm_multiple:
        return ""
    median = statistics.median(others) if len(others) >= _LEAST_NORMS else 0.0
    if median and norm <= limits.norm_multiple * median:
        return ""
    own = own_norm()
    reference, name = (median, "median") if len(others) >= _LEAST_NORMS else (_FIRST_SHARE * own, _FIRST_REFERENCE)
    limit = limits.norm_multiple * max(reference, _LEAST_SHARE * own)
    if norm <= limit or not limit:  # weights and changes of zero are not a measure
        return ""
    return f"its update has the norm {norm:.3g}, more than {key} allows, where the {name} is {reference:.3g}"


def _refusal_of_record(limits: AdmissionConfig, record: str, norm: float, others: list[float]) -> str:
    """Return the reason to refuse a further record of this norm; empty if it is not too large, or not comparable."""
    if not limits.record_multiple or len(others) < _LEAST_NORMS:
        return ""
    median = max(statistics.median(others), statistics.median(others[:_LEAST_NORMS]))
    if norm <= limits.record_multiple * median or not median:
        return ""
    return (
        f"its record {record} has the norm {norm:.3g}, more than {limits.record_multiple:g} times the median, which is "
        f'{median:.3g} (max-update-norm = "{limits.max_update_norm}")'
    )


def _bounded(norms: list[float]) -> list[float]:
    """Return the norms without those that do not count any more; the first ones stay, as a measure for records."""
    return norms if len(norms) <= _LONGEST_HISTORY else [*norms[:_LEAST_NORMS], *norms[_LEAST_NORMS + 1 :]]


def warn_of_decisive(sizes: Mapping[int, int]) -> None:
    """Log a warning if one of several clients claims so many images that a mean weighted by them is its own."""
    total = sum(sizes.values())
    for partition, size in sorted(sizes.items()):
        if len(sizes) > 1 and size > _DECISIVE * total:
            logger.warning(
                "client %d has %d of all %d images (%.2f %%), so that it decides the weighted mean and its share of "
                "the auxiliary set alone: if that is not true, leave it out by a smaller max-examples-per-client.",
                *(partition, size, total, 100 * size / total),
            )


def warn_of_warmup(training: TrainingConfig, sizes: Mapping[int, int]) -> None:
    """Warn of clients whose ``local-epochs`` end before the learning rate is reached."""
    steps = {partition: training.steps_for(size) for partition, size in sorted(sizes.items())}
    short = [partition for partition, count in steps.items() if count <= training.warmup_steps]
    if short and training.local_epochs:
        text = "client %s: the %d steps of local-epochs = %d are not more than warmup-steps = %d, so that the learning "
        text += "rate is never reached: use a smaller warmup-steps"
        named = ", ".join(map(str, short[:_MOST_NAMED])) + (", ..." if len(short) > _MOST_NAMED else "")
        logger.warning(text, named, max(steps[each] for each in short), training.local_epochs, training.warmup_steps)
