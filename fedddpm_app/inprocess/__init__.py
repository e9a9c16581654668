"""A federation in one process: ``simulate``, its hyper-parameter names and its grid."""
