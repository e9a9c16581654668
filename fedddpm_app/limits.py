"""The limits of what a stranger may state or imply: they are checked before memory is taken."""

# ---- bombs: files, pictures, tables and models that come from elsewhere -------------------------

MIB = 2**20
# of one JSON file, such as a checkpoint's state.json: Python takes some ten times its size
JSON_BYTES = 64 * MIB
# of a file of JSON lines, such as stats.jsonl or ledger.jsonl: about a kilobyte for each round or submission
LINES_BYTES = 512 * MIB
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
# of a data set or a label table: one picture each
ROWS = 10_000_000

# of one number in a pipeline's config: the channels, classes, timesteps and pixels of published pipelines are below it
PIPELINE_NUMBER = 100_000
# of the numbers that count layers, and of the entries of a list such as block_out_channels
PIPELINE_LAYERS = 32
# of one side of the images of a pipeline: twice that of the largest published ones on pixels
IMAGE_SIDE = 2048
# how many times larger a model is than the file of its weights: a file of 8 bits becomes one of 32 bits
MODEL_RATIO = 4

# of the file of an evaluation network, unpacked: Inception-v3 has 91 MiB
NETWORK_BYTES = 512 * MIB
# of the members of cells.zip together, and their number: a grid of 1,000 cells has 50 MiB and 5,000 files
CELLS_BYTES = 256 * MIB
CELLS_FILES = 20_000

# of the files of one run directory, sent or left: a run of 10,000 rounds has some files for each sheet and checkpoint
DELIVERED_FILES = 100_000
# of the files of one run directory together
DELIVERED_BYTES = 64 * 1024 * MIB
# of the log of a deployed run: some 100 bytes for each event
DELIVERED_LOG_BYTES = 256 * MIB
