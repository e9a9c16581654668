"""Limits of what others state or imply: sizes, counts and lengths. Each has its reason."""

# Files that `fedddpm fetch` receives from a server's host.
DELIVERY_MB = 20_000  # a demo's run directory has 6 MB; 20 GB take 50 minutes at the rate of a delivery; see --total-mb
DELIVERY_FILES = 20_000  # a run of 1,000 rounds that keeps every checkpoint has 7,000; each file costs an inode
DELIVERY_NAME = 400  # characters of a file's path; the longest of a run directory has 60
DELIVERY_DEPTH = 8  # folders of a path; a run directory has 3
LOG_LINE = 1 << 20  # characters of a line that a server sends; a line of a delivery has 131,200
LOG_CHARACTERS = 300_000_000  # of a run's log, which is read as a whole; a day of 20 lines per second has half of it
