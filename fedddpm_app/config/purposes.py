"""What keys are for, as far as several rules depend on it: which may change on a resume, which change no result, ...

A new key of one of these purposes belongs here; any other key counts as one that changes the weights.
"""

PLACES = ("output-dir", "run-name", "state-dir", "cache-dir")
RESUMING = ("resume", "resume-previous")
WAITING = (
    *("node-timeout", "round-timeout", "pretrain-timeout", "min-available-nodes", "min-replies", "max-round-retries"),
)
KEEPING = ("checkpoint-every", "checkpoint-keep")
SHOWING = ("preview-", "tracker", "track-client-images")  # a name that ends in "-" stands for all keys that begin so
MEASURING = ("eval-", "inception-weights", "membership-")
CHECKING = ("memorization-extractor", "memorization-neighbours", "memorization-rate")  # models, and generated images
