"""A federation in this process: ``simulate``, its hyper-parameter names, its grid."""
