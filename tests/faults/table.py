"""The table of faults: what a client does, in which phase, and what the run makes of it.

A row is (fault of ``wrapper``, phase, the reason that ``stats.jsonl`` names). The reason is a regular expression; None
means that the reply is accepted. Each row also says, implicitly, that the run completes, and that the client is back in
the next phase. The rows that only a process of its own survives are in ``test_actors``.
"""

from typing import NamedTuple

NOT_FINITE = "^its weights are not finite$"
TOO_LARGE = r'^its update has the norm \S+, more than max-update-norm = "100x" allows, where the'
NO_BLOB = "^(its tensors differ from the model's: it is not a safetensors blob|it is not a reference to a file)$"
LAYOUT = "^its tensors differ from the model's: .* instead of "
NAMES = "^its tensors differ from the model's: parameter names differ"
ROUND = "^it answers round -?[0-9]+, not round [0-9]+$"


class Row(NamedTuple):
    """One row of the table."""

    fault: str
    phase: str
    reason: str | None


_ANSWERS = {  # in place of an answer, or around it: the same in every phase
    "raise": "^RuntimeError: a planted fault$",
    "raise-5mb": "^RuntimeError: long x{270,290}[.]{3}$",
    "none": "^TypeError: the ClientApp returned NoneType instead of a Message$",
    "not-a-message": "^TypeError: the ClientApp returned dict instead of a Message$",
    "exit": "^SystemExit: 3$",
    "empty": "^it has no MetricRecord 'metrics'$",
    "no-metrics": "^it has no MetricRecord 'metrics'$",
    "wrong-records": "^it has no MetricRecord 'metrics'$",
    "stale": ROUND,
    "many-numbers": "^its [0-9]+ metrics that are not declared have [0-9]+ numbers: at most ",
    "long-name": "^its [0-9]+ metrics that are not declared have ",
}
_COUNTS = {
    "examples-1e12": "^num-examples is 1000000000000, more than max-examples-per-client = 1000000$",
    "examples-1e7": "^num-examples is 10000000, more than max-examples-per-client = 1000000$",
    "examples-1e6": "^num-examples is 1000000, but it has [0-9]+ (held-out )?images$",
    "examples--1": "^num-examples is -1, not a positive whole number$",
    "examples-0": "^num-examples is 0, not a positive whole number$",
    "examples-nan": "^num-examples is nan, not a positive whole number$",
    "loss-1e300": "^metric loss is 1e[+]300, which is not between -1e[+]15 and 1e[+]15: a loss of this size ",
}
_FORMS = {
    "shape": LAYOUT,
    "dtype": LAYOUT,
    "missing-key": NAMES,
    "extra-key": NAMES,
    "garbage": NO_BLOB,
    "header-bomb": NO_BLOB,
    "truncated": "^(it has [0-9]+ bytes instead of [0-9]+|it is not a reference to a file)$",
}
_VALUES = {
    "nan": NOT_FINITE,
    "inf": NOT_FINITE,
    "1e30": NOT_FINITE,
    "x1e3": TOO_LARGE,
    "x1e10": TOO_LARGE,
    "1e10-in-200": TOO_LARGE,
    "sign-flip": None,
}
_RECORDS = {  # of an algorithm that has a further record, such as SCAFFOLD
    "record-x1e10": "^its record control-variate-change has the norm [^ ]+, more than 100 times the median, which is ",
}
_IMAGES = {"constant": "^[0-9]+ of [0-9]+ generated images are constant"}
_OF_PHASE = {
    "pretrain": _ANSWERS | _COUNTS | _FORMS | _VALUES,
    "generate": _ANSWERS | _FORMS | _IMAGES,
    "train": _ANSWERS | _COUNTS | _FORMS | _VALUES | _RECORDS,
    "evaluate": _ANSWERS | _COUNTS,
}
TABLE = [Row(fault, phase, reason) for phase, rows in _OF_PHASE.items() for fault, reason in rows.items()]
SHORT = {  # one of each kind, for the tests that always run
    "pretrain": ["none", "x1e10", "examples-1e7", "stale", "truncated"],
    "generate": ["raise-5mb", "constant", "dtype", "stale", "exit"],
    "train": ["exit", "x1e3", "1e10-in-200", "examples-1e6", "stale", "nan", "header-bomb", "sign-flip", "loss-1e300"],
    "evaluate": ["none", "examples-1e6", "stale", "wrong-records", "examples-nan"],
}
