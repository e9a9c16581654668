"""The columns of data sets: the image column, the label column, and their names."""

from collections.abc import Iterable

import datasets
import pyarrow
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value

from fedddpm_app.config import ConfigError
from fedddpm_app.data.splits import LABEL, LABEL_COLUMNS, Split, split_named, split_of_dataset
from fedddpm_app.progress import logger

UNREADABLE = (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError)
_MAX_TEXT_CLASSES = 1000  # a text column with more distinct values holds captions, not classes
_IMAGE_COLUMNS = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "pixel_values")


def splits_of(loaded: Dataset | DatasetDict, name: str) -> dict[str, Split]:
    """Give the image and label columns of a data set their standard names and types."""
    splits = _known_splits(loaded, name)
    columns = splits["train"].column_names
    features = splits["train"].features
    named = [c for known in _IMAGE_COLUMNS for c in columns if c.lower() == known]
    image = next((c for c in named if isinstance(features[c], Image)), next(iter(named), None))
    label = next((c for known in LABEL_COLUMNS for c in columns if c.lower() == known), None)
    if image is None:
        raise ConfigError(
            f'dataset = "{name}" has no image column, only {", ".join(columns)}: name it "{_IMAGE_COLUMNS[0]}".'
        )
    kept = {image: "image"} | ({label: LABEL} if label else {})
    splits = DatasetDict({split: _rename(part, kept, name, split) for split, part in splits.items()})
    if label:
        splits = _with_usable_labels(splits, name, label)
    return {split: split_of_dataset(part, split) for split, part in splits.items()}


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


def _with_usable_labels(splits: DatasetDict, name: str, column: str) -> DatasetDict:
    """Turn text labels into classes; drop the labels if some are missing or are neither classes nor whole numbers."""
    texts = _text_classes(splits)
    if texts:
        for feature in (Value("string"), ClassLabel(names=texts)):  # datasets casts only this text type to classes
            splits = splits.cast_column(LABEL, feature)
        return splits
    if all(_has_usable_labels(part) for part in splits.values()):
        return _with_one_mapping(splits, name)
    logger.warning(
        'dataset = "%s": its column "%s" is left out: labels must be classes, texts or whole numbers from 0.',
        name,
        column,
    )
    return splits.remove_columns(LABEL)


def _with_one_mapping(splits: DatasetDict, name: str) -> DatasetDict:
    """Give the classes of every split the labels of the train split."""
    names: list[str] = getattr(splits["train"].features[LABEL], "names", [])
    for split, part in splits.items():
        others = getattr(part.features[LABEL], "names", names)
        if others != names:
            if sorted(others) != sorted(names):
                raise ConfigError(
                    f'dataset = "{name}": its {split} split has other classes than its train split; use the same '
                    "class names in both."
                )
            splits[split] = part.align_labels_with_mapping({each: k for k, each in enumerate(names)}, LABEL)
    return splits


def _text_classes(splits: DatasetDict) -> list[str]:
    """Return the sorted classes of a text label column; empty if the column holds captions or another type."""
    found: set[str] = set()
    for part in splits.values():
        feature = part.features[LABEL]
        if not (isinstance(feature, Value) and feature.dtype in ("string", "large_string")):
            return []
        found |= set(part.unique(LABEL))
    usable = None not in found and len(found) <= min(_MAX_TEXT_CLASSES, len(splits["train"]) // 2)
    return sorted(found) if usable else []


def _has_usable_labels(part: Dataset) -> bool:
    feature = part.features[LABEL]
    whole = isinstance(feature, Value) and feature.dtype.removeprefix("u").startswith("int")
    return (whole or isinstance(feature, ClassLabel)) and part.data.column(LABEL).null_count == 0
