"""Trackers: TensorBoard, Weights & Biases, MLflow and Trackio get the numbers that ``stats.jsonl`` gets.

A run hands its lines and pictures to a ``TrackingSink``, which passes them on in a thread of its own. One file per
library implements ``Tracker``; the library is imported when a run uses it.
"""

from fedddpm_app.tracking.choice import chosen_trackers, start_tracking
from fedddpm_app.tracking.sink import TrackingSink
from fedddpm_app.tracking.tracker import TrackedRun, Tracker
from fedddpm_app.tracking.values import points_of_line, points_of_summary

__all__ = [
    "TrackedRun",
    "Tracker",
    "TrackingSink",
    "chosen_trackers",
    "points_of_line",
    "points_of_summary",
    "start_tracking",
]
