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

# ---- what the config of a run states -----------------------------------------------------------

CLIENTS = 100_000  # each costs memory in every table of the run; the largest published simulations have some 10,000

# ---- bombs: files, pictures, tables and models that come from elsewhere -------------------------

MIB = 2**20
# of one JSON file, such as a checkpoint's state.json: Python takes some ten times its size
JSON_BYTES = 64 * MIB
# of a file of JSON lines: a line of stats.jsonl has 32 bytes for each client of its round, so 8,000 rounds of 1,000
# clients; ledger.jsonl has 440 for each vote, so 240 rounds of 50 peers
LINES_BYTES = 256 * MIB
# of the header of a safetensors file or blob: 16,000 tensors, where the largest published UNets have 2,000
TENSOR_HEADER_BYTES = 2 * MIB
# of the header that a reply has instead of the expected one, to name the difference: some more than the expected one
ODD_HEADER_BYTES = 64 * 1024

# of one picture, 8192 x 8192: in RGBA with its copies it takes a gigabyte
PIXELS = 2**26
# how many times its size a gzip file or a table may unpack to; zeros reach 1,000, digits on black some 10
UNPACKED_RATIO = 100
# what a file may unpack to in any case, however small it is
UNPACKED_BYTES = 64 * MIB
# of a label table, packed or not: a row of 10 texts for each of a million pictures
TABLE_BYTES = 256 * MIB
# of the rows of a table times its columns: a cell takes memory or time, also if nothing is in it
TABLE_CELLS = 50_000_000
# of a table: `datasets` takes some 20 ms for each; 40 attributes are usual for faces, and some hundred for patients
TABLE_COLUMNS = 1_000
# of a data set or a label table: one picture each
ROWS = 10_000_000

# of one number in a pipeline's config: the channels, classes, timesteps and pixels of published pipelines are below it
PIPELINE_NUMBER = 100_000
# of the numbers that count layers, and of the entries of a list such as block_out_channels
PIPELINE_LAYERS = 32
# of the entries of any other list, except one beta per diffusion step: published pipelines have at most four
PIPELINE_LIST = 64
# of one side of the images of a pipeline: twice that of the largest published ones on pixels
IMAGE_SIDE = 2048
# how many times larger a model is than the file of its weights: a file of 8 bits becomes one of 32 bits
MODEL_RATIO = 4

# of the file of an evaluation network, unpacked: Inception-v3 has 91 MiB
NETWORK_BYTES = 512 * MIB
# of a published extractor: a classifier of digits has 0.4 MB, principal components of 32 x 32 pixels in colour 0.8 MB
EXTRACTOR_BYTES = 64 * MIB
# of the members of cells.zip together, and their number: a grid of 1,000 cells has 50 MiB and 5,000 files
CELLS_BYTES = 256 * MIB
CELLS_FILES = 20_000
