"""Checks of what an algorithm's code gives a client: records of tensors, and finite values."""

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fedddpm_app import weights as weights_module
from fedddpm_app.progress import logger
from fedddpm_app.training.declined import TrainingDivergedError
from fedddpm_app.training.hooks import TrainingHook, TrainResult


def check_result(training: TrainResult, hook: TrainingHook, *, keeps: bool) -> None:
    """Check a round's result and the hook's records, before its state is saved; drop ``kept`` unless the run ``keeps``.

    Raises
    ------
    TypeError
        If a record is not a dict of tensors.
    TrainingDivergedError
        If a value is not finite.
    """
    check_records(hook.kept, "self.kept of the hook")
    check_records(hook.sent, "self.sent of the hook")
    if hook.kept and not keeps:
        _warn_of_dropped(type(hook).__name__, next(iter(hook.kept)))
        hook.kept = {}
    if not weights_module.is_finite(training.weights):
        loss = "" if training.privacy else f", with a last loss of {training.final_loss}"
        raise TrainingDivergedError(f"its training diverged{loss}: lower learning-rate")
    for kind, records in (("kept", hook.kept), ("sent", hook.sent)):
        for name, record in records.items():
            if not weights_module.is_finite(record):
                raise TrainingDivergedError(f'"{name}", in self.{kind} of the hook, is not finite: lower learning-rate')


@functools.cache
def _warn_of_dropped(hook: str, name: str) -> None:
    """Warn once in a process."""
    logger.warning('%s: self.kept has "%s", which is dropped: set keeps_state = True to keep it', hook, name)


def check_records(records: Any, where: str) -> None:
    """Raise ``TypeError`` for what is not a mapping of names to dicts of tensors."""
    for name, record in records.items() if isinstance(records, Mapping) else [("", records)]:
        if not isinstance(record, Mapping) or not all(isinstance(tensor, Tensor) for tensor in record.values()):
            raise TypeError(
                f'{where}: "{name}" is a {type(record).__name__}: give a dict of tensors, such as {{"value": tensor}}.'
            )
