"""The columns of data sets: the image column and the label column get their standard names."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import datasets
import pyarrow
from datasets import Dataset, DatasetDict, Image

from fedddpm_app.config import ConfigError
from fedddpm_app.data.labels import label_column, with_classes
from fedddpm_app.data.splits import LABEL, Split, split_named, split_of_dataset

UNREADABLE = (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError)
_IMAGE_COLUMNS = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "pixel_values")


def splits_of(
    loaded: Dataset | DatasetDict, name: str, folders: Sequence[Path] = (), class_names: Sequence[str] = ()
) -> dict[str, Split]:
    """Give the image and label columns of a data set their standard names and types.

    A table may name pictures in ``folders``, and no others: it may come from somebody else. ``class_names`` are those
    that are known, see ``with_classes``.
    """
    splits = _known_splits(loaded, name)
    columns = splits["train"].column_names
    features = splits["train"].features
    named = [c for known in _IMAGE_COLUMNS for c in columns if c.lower() == known]
    image = next((c for c in named if isinstance(features[c], Image)), next(iter(named), None))
    label = label_column(columns)
    if image is None:
        raise ConfigError(
            f'dataset = "{name}" has no image column, only {", ".join(columns)}: name it "{_IMAGE_COLUMNS[0]}".'
        )
    kept = {image: "image"} | ({label: LABEL} if label else {})
    splits = DatasetDict({split: _rename(part, kept, name, split) for split, part in splits.items()})
    parts = with_classes(splits, f'dataset = "{name}"', label, class_names=class_names) if label else splits
    return {split: split_of_dataset(part, split, folders) for split, part in parts.items()}


def _known_splits(loaded: Dataset | DatasetDict, name: str) -> DatasetDict:
    """Return the train split and the test split; without a test split, the validation split takes its place."""
    splits = loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
    by_name: dict[str, Dataset] = {}
    for split, part in splits.items():
        by_name.setdefault(split_named(split) or split, part)
    if "train" not in by_name:
        raise without_train(splits, name)
    test = by_name.get("test") if by_name.get("test") is not None else by_name.get("validation")
    return DatasetDict(train=by_name["train"]) if test is None else DatasetDict(train=by_name["train"], test=test)


def without_train(splits: Iterable[str], name: str) -> ConfigError:
    """Return the error for a data set without a train split."""
    return ConfigError(
        f'dataset = "{name}" has no train split, only {", ".join(splits)}: name the split to train on "train".'
    )


def _rename(part: Dataset, kept: dict[str, str], name: str, split: str) -> Dataset:
    """Rename the image and label columns to their standard names; drop other columns that have these names."""
    missing = [column for column in kept if column not in part.column_names]
    if missing:
        raise ConfigError(
            f'dataset = "{name}": its {split} split lacks the column "{missing[0]}", which its train split has.'
        )
    part = part.remove_columns([new for old, new in kept.items() if old != new and new in part.column_names])
    part = part.rename_columns({old: new for old, new in kept.items() if old != new})
    if isinstance(part.features["image"], Image):
        return part
    try:
        return part.cast_column("image", Image())
    except UNREADABLE as error:
        raise ConfigError(
            f'dataset = "{name}": its column "{next(iter(kept))}" holds {part.features["image"]}, not images; store '
            "this column with datasets' Image feature."
        ) from error
