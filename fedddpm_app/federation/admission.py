"""What the server knows of its clients, against which it judges replies of the right form.

A reply is refused if it claims more images than its client has, or if its change of the weights is out of all
proportion. Replies are judged in the order of the partition ids, so that the verdicts do not depend on the order of
arrival, and each reply is judged when it is its turn, so that no round is held in memory.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from fedddpm_app.config import AdmissionConfig, Config
from fedddpm_app.federation.records import NUM_EXAMPLES
from fedddpm_app.federation.replies import Reply, ReplyRefusedError
from fedddpm_app.progress import logger

_LEAST_NORMS = 3  # fewer accepted norms have no median to rely on
_LONGEST_HISTORY = 1000  # accepted norms; older ones do not count any more
_FIRST_SHARE = 0.1  # of the model's own norm, in place of a median that is not known yet
_LEAST_SHARE = 0.01  # of the model's own norm: clients that send no change do not make every change too large
_FIRST_REFERENCE = "tenth of the norm of the model's own weights"
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
        the check of the sites' data, or from the client's first accepted reply.
    history : list of float
        The norms of the accepted updates, in the order of the rounds and partitions.
    """

    def __init__(self, config: Config) -> None:
        self.sizes: dict[int, int] = {}
        self.history: list[float] = []
        self._limits = config.admission
        self._most = config.data.max_examples_per_client
        self._held_out = config.data.held_out_fraction

    def state_dict(self) -> dict[str, object]:
        """Return what is known so far, for a checkpoint."""
        return {"sizes": dict(self.sizes), "history": [*self.history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with what a checkpoint knows; sizes that the server has read itself stay."""
        self.sizes = state["sizes"] | self.sizes
        self.history = [*state["history"]]

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
            return
        most, kind = (self._most_held_out(size), "held-out images") if held_out else (size, "images")
        if count > most:
            raise ReplyRefusedError(f"{NUM_EXAMPLES} is {count}, but it has {most} {kind}")

    def learn_size(self, reply: Reply) -> None:
        """Store the size of a client that is not known yet."""
        self.sizes.setdefault(reply.partition_id, reply.num_examples)

    def _most_held_out(self, size: int) -> int:
        """Return the largest number of held-out images beside ``size`` training images: see ``held-out-fraction``."""
        share = self._held_out
        return max(1, math.ceil((size + 0.5) * share / (1 - share) + 0.5))

    # ---- the norm of an update ------------------------------------------------------------------

    def judge(self, reply: Reply, own_norm: Callable[[], float]) -> None:
        """Add a training reply's norm to the history, or raise ``ReplyRefusedError`` if it is too large.

        Parameters
        ----------
        reply : Reply
            The next reply, in the order of the partition ids.
        own_norm : callable
            Returns the norm of the weights that the round started from.
        """
        if reply.update_norm is None:
            return
        refusal = _refusal(self._limits, reply.update_norm, self.history, own_norm)
        if refusal:
            raise ReplyRefusedError(refusal)
        self.history = [*self.history, reply.update_norm][-_LONGEST_HISTORY:]

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
