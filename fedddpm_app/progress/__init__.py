"""The log: its progress lines, which `fedddpm run` reads, and their form."""

from fedddpm_app.progress.lines import (
    ProgressEvent,
    logger,
    name_directory,
    note,
    parse_directory,
    parse_line,
    parse_note,
    report,
)
from fedddpm_app.progress.logs import configure_logging, logging_to
from fedddpm_app.progress.reporters import ItemReporter, StepReport, StepReporter, reported, reporter

__all__ = [
    "ItemReporter",
    "ProgressEvent",
    "StepReport",
    "StepReporter",
    "configure_logging",
    "logger",
    "logging_to",
    "name_directory",
    "note",
    "parse_directory",
    "parse_line",
    "parse_note",
    "report",
    "reported",
    "reporter",
]
