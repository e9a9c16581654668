"""The columns of data sets: which one holds the images, which one the classes, and under which names."""

from collections.abc import Iterable

import datasets
import pyarrow
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value

from fedddpm_app.config import ConfigError
from fedddpm_app.data.splits import LABEL, LABEL_COLUMNS, Split, split_named, split_of_dataset
from fedddpm_app.progress import logger

UNREADABLE = (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError)
_MAX_TEXT_CLASSES = 1000  # a column of texts with more different ones holds captions, not classes
_IMAGE_COLUMNS = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "pixel_values")


def splits_of(loaded: Dataset | DatasetDict, name: str) -> dict[str, Split]:
    """Bring the image and label columns of data sets to their standard names and types."""
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
    """Return the train split and the one that stands for the test split: test, else validation."""
    splits = loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
    by_name: dict[str, Dataset] = {}
    for split, part in splits.items():
        by_name.setdefault(split_named(split) or split, part)
    if "train" not in by_name:
        raise without_train(splits, name)
    test = by_name.get("test") if by_name.get("test") is not None else by_name.get("validation")
    return DatasetDict(train=by_name["train"]) if test is None else DatasetDict(train=by_name["train"], test=test)


def without_train(splits: Iterable[str], name: str) -> ConfigError:
    """Return the error of a data set that has other splits only."""
    return ConfigError(
        f'dataset = "{name}" has no train split, only {", ".join(splits)}: name the one to train on "train".'
    )


def _rename(part: Dataset, kept: dict[str, str], name: str, split: str) -> Dataset:
    """Return a split with its image and label columns under their standard names, others of these names dropped."""
    missing = [column for column in kept if column not in part.column_names]
    if missing:
        raise ConfigError(f'dataset = "{name}": its {split} split lacks the column "{missing[0]}" of its train split.')
    part = part.remove_columns([new for old, new in kept.items() if old != new and new in part.column_names])
    part = part.rename_columns({old: new for old, new in kept.items() if old != new})
    if isinstance(part.features["image"], Image):
        return part
    try:
        return part.cast_column("image", Image())
    except UNREADABLE as error:
        raise ConfigError(
            f'dataset = "{name}": its column "{next(iter(kept))}" holds {part.features["image"]}, not images; store it '
            "with datasets' Image feature."
        ) from error


def _with_usable_labels(splits: DatasetDict, name: str, column: str) -> DatasetDict:
    """Make classes of texts; leave labels out that are neither classes nor whole numbers, or that are missing."""
    texts = _text_classes(splits)
    if texts:
        for feature in (Value("string"), ClassLabel(names=texts)):  # datasets casts no other kind of text to classes
            splits = splits.cast_column(LABEL, feature)
        return splits
    if all(_has_usable_labels(part) for part in splits.values()):
        return _with_one_mapping(splits, name)
    logger.warning(
        'dataset = "%s": its column "%s" is left out: labels are classes, texts or whole numbers from 0.', name, column
    )
    return splits.remove_columns(LABEL)


def _with_one_mapping(splits: DatasetDict, name: str) -> DatasetDict:
    """Give the splits the train split's numbers of the classes, where they number the same names otherwise."""
    names: list[str] = getattr(splits["train"].features[LABEL], "names", [])
    for split, part in splits.items():
        others = getattr(part.features[LABEL], "names", names)
        if others != names:
            if sorted(others) != sorted(names):
                raise ConfigError(f'dataset = "{name}": its {split} split has other classes than its train split.')
            splits[split] = part.align_labels_with_mapping({each: k for k, each in enumerate(names)}, LABEL)
    return splits


def _text_classes(splits: DatasetDict) -> list[str]:
    """Return the sorted texts of a label column of texts; empty where it holds something else, or captions."""
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
