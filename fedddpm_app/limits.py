"""Limits of what a stranger states or implies: a client to the server, a server to a site or to a user."""

# ---- texts and metrics --------------------------------------------------------------------------

LONGEST_REASON = 300  # characters of a client's reason in the log and stats.jsonl: about two lines, at most 1.2 kB
LONGEST_TEXT = 65_536  # characters of a text that are read at all; a traceback fits
LONGEST_VALUE = 100  # characters of a client's value, or of the name of a metric: a longer one has no use
MOST_METRICS = 1_000  # that a strategy does not declare: a hook adds a few; each one costs memory until its round ends
MOST_METRIC_NUMBERS = 100_000  # in these metrics together: one number per class (MAX_CLASSES) is usual
LARGEST_METRIC = 1e15  # of a declared one, such as a loss: squared errors of large targets are smaller
LARGEST_NUMBER = 1e30  # a norm or other metric; a larger one overflows in a mean, or when a difference is scaled up
