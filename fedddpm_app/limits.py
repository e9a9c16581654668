"""Limits of what a stranger states or implies: a client to the server, a server to a site or to a user."""

# ---- texts and metrics --------------------------------------------------------------------------

LONGEST_REASON = 300  # characters of a client's reason in the log and stats.jsonl: about two lines, at most 1.2 kB
LONGEST_TEXT = 65_536  # characters of a text that are read at all; a traceback fits
LONGEST_VALUE = 100  # characters of a client's value, or of the name of a metric: a longer one has no use
MOST_METRICS = 1_000  # that a strategy does not declare: a hook adds a few; each one costs memory until its round ends
MOST_METRIC_NUMBERS = 100_000  # in these metrics together: one number per class (MAX_CLASSES) is usual
LARGEST_METRIC = 1e15  # of a declared one, such as a loss: squared errors of large targets are smaller
LARGEST_NUMBER = 1e30  # a norm or other metric; a larger one overflows in a mean, or when a difference is scaled up

# ---- what `fedddpm fetch` receives from a server's host -----------------------------------------

DELIVERY_MB = 20_000  # a demo's run directory has 6 MB; 20 GB take 50 minutes at the rate of a delivery; see --total-mb
DELIVERY_FILES = 20_000  # a run of 1,000 rounds that keeps every checkpoint has 7,000; each file costs an inode
DELIVERY_NAME = 400  # characters of a file's path; the longest of a run directory has 60
DELIVERY_DEPTH = 8  # folders of a path; a run directory has 3
LOG_LINE = 1 << 20  # characters of a line that a server sends; a line of a delivery has 131,200
LOG_CHARACTERS = 300_000_000  # of a run's log, which is read as a whole; a day of 20 lines per second has half of it
