"""What a round's line in ``stats.jsonl`` says of the peers."""

from collections.abc import Mapping, Sequence

from fedddpm_app.federation.messages.replies import Reply
from fedddpm_app.peers.board import Board
from fedddpm_app.peers.relay import Relay


def report_round(relay: Relay, replies: Sequence[Reply]) -> tuple[float, dict[str, object]]:
    """Return the mean loss of a round's submissions, and the values for its line: losses, votes, and who has left."""
    loss, values = report_losses(replies)
    values |= {f"pdfed/{name}": value for name, value in report_votes(relay.board).items()}
    values |= {"pdfed/time": relay.time, "pdfed/submissions": _by_peer(relay.numbers)}
    left = {str(peer): reason for peer, reason in sorted(relay.left.items())}
    return loss, values | ({"train/left_out": left} if left else {})


def report_votes(board: Board) -> dict[str, object]:
    """Return the mean votes on each peer's submission, and on the best one by score and by distance alone.

    Keys have no prefix. ``best`` and ``nearest`` are their peers, and the values of the latter are ``nearest_...``.
    ``matches``: by voter, how many samples of the candidates match its training images.
    """
    means = board.means()
    found: dict[str, object] = {"matches": _by_peer(board.confirmed())}
    for term in ("score", "distance", "novelty"):
        found[f"{term}_of_peer"] = _by_peer({peer: getattr(mean, term) for peer, mean in means.items()})
    if means:
        best = board.best()
        by_score = best.peer if best and best.peer in means else min(means)
        by_distance = min(means, key=lambda peer: means[peer].distance)
        found |= {"best": by_score, "nearest": by_distance, **means[by_score]._asdict()}
        found |= {f"nearest_{term}": value for term, value in means[by_distance]._asdict().items()}
    return found


def report_losses(replies: Sequence[Reply]) -> tuple[float, dict[str, object]]:
    """Return the mean loss of a round's submissions, weighted by examples, and the values for its line.

    A peer that submitted several times is named with its last loss; without submissions the mean is NaN.
    """
    if not replies:
        return float("nan"), {}
    total = sum(reply.num_examples for reply in replies)
    loss, final = (
        sum(reply.num_examples * reply.number(key) for reply in replies) / total for key in ("loss", "final-loss")
    )
    of_client = {reply.partition_id: reply.number("loss") for reply in replies}
    return loss, {
        "train/loss": loss,
        "train/final_loss": final,
        "train/client_loss": _by_peer(of_client),
        "train/num_examples": total,
    }


def _by_peer(values: Mapping[int, float]) -> dict[str, float]:
    return {str(peer): values[peer] for peer in sorted(values)}
