"""The images of each class that a client reports, for the classes of generated images and the choice of edges."""

from fedddpm_app.federation.messages.replies import Reply, ReplyRefusedError

LABEL_COUNTS = "label-counts"


def check_label_counts(num_classes: int, reply: Reply) -> None:
    """Refuse label counts that are not one number per class, with the client's images as their sum."""
    counts: object = reply.metrics.get(LABEL_COUNTS)
    fits = (
        isinstance(counts, list)
        and len(counts) == num_classes
        and all(isinstance(count, int) and count >= 0 for count in counts)
        and sum(counts) == reply.num_examples
    )
    if not fits:
        raise ReplyRefusedError(
            f"its label counts are not {num_classes} numbers that add up to its {reply.num_examples} images"
        )
