"""The run directory: the files that a run writes. See ``recorder`` for its layout."""
