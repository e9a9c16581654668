"""The run directory: what a run leaves behind. See ``recorder`` for its layout."""
