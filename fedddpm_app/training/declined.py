"""A client's reasons for an answer without a result, each in one sentence."""


class DeclinedError(Exception):
    """A client declines a request, for a reason that a repetition would not change; its message is a sentence.

    The server names the client and the reason, and goes on without it; the client is not asked again in the phase.
    """


class TrainingDivergedError(RuntimeError):
    """A client's training gave weights that are not finite."""
