"""What the server that cells are forked from reads once, so that a change of the files does not reach later cells.

It imports this module after all others: the version of the source is then that of the code.
"""

from fedddpm_app.recording.provenance import source_version

source_version()
