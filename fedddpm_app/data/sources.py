"""Where images come from: the embedded digits, a local folder, or the Hugging Face hub.

Every source gives a ``train`` and a ``test`` split.
"""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value

from fedddpm_app.config import ConfigError
from fedddpm_app.data.folders import load_folder, stat_digest
from fedddpm_app.data.splits import LABEL, LABEL_COLUMNS, Split, split_named, split_of_array, split_of_dataset
from fedddpm_app.progress import logger

DIGITS = "digits"
LOCAL = "path:"
HUB_IDS = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
TEST_FRACTION = 0.2
SPLIT_SEED = 0  # the split is a property of the data set, equal for all runs and seeds
MAX_TEXT_CLASSES = 1000  # a column of texts with more different ones holds captions, not classes
_IMAGE_COLUMNS = ("image", "img", "images", "picture", "photo", "jpg", "jpeg", "png", "webp", "pixel_values")
_UNREADABLE = (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError)


@functools.lru_cache(maxsize=4)
def load_source(name: str) -> dict[str, Split]:
    """Load a data set by the value of the ``dataset`` key.

    Parameters
    ----------
    name : str
        ``digits``; ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100`` or any id of the Hugging Face hub; or
        ``path:/abs/folder``: pictures (one sub-folder per class, or none), parquet or arrow files, a
        ``save_to_disk`` folder, or IDX files.

    Returns
    -------
    dict of str to Split
        ``train`` and ``test``; where the source has no test (or validation) split, a fifth is split off.

    Raises
    ------
    ConfigError
        When the source cannot be read, with how to supply it.
    """
    if name == DIGITS:
        return _digits()
    if name.startswith(("/", "./", "../", "~")):
        raise ConfigError(f'dataset = "{name}" looks like a folder: write "{LOCAL}{Path(name).absolute()}".')
    if not name.startswith(LOCAL):
        return _complete(_from_datasets(_hub(name), name), name)
    folder = local_folder(name)
    try:
        loaded = load_folder(folder)
    except ConfigError:
        raise
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.filename and not Path(error.filename).is_relative_to(folder):
            raise ConfigError(
                f'dataset = "{name}": {error.filename} cannot be used ({error.strerror}); it is of the Hugging Face '
                "cache: set HF_HOME to a folder in which you may write."
            ) from error
        raise ConfigError(
            f'dataset = "{name}" holds no images that can be read ({_first_line(error)}); give a folder of images '
            "(one sub-folder per class, or none), of parquet, arrow or IDX files, or one that save_to_disk wrote."
        ) from error
    return _complete(loaded if _is_split(loaded) else _from_datasets(loaded, name), name)


def fingerprint(name: str) -> str:
    """Return what tells one state of a source from another, without decoding it."""
    if name.startswith(LOCAL):
        return stat_digest(local_folder(name))
    if name == DIGITS:
        return DIGITS
    splits = load_source(name)
    return " ".join(f"{split}={len(splits[split])}:{splits[split].fingerprint}" for split in sorted(splits))


def local_folder(name: str) -> Path:
    """Return the folder of a ``path:`` data set; raise ``ConfigError`` where there is none."""
    try:
        folder = Path(name.removeprefix(LOCAL)).expanduser()
    except RuntimeError as error:
        raise ConfigError(f'dataset = "{name}" cannot be used: {error} Give an absolute path.') from error
    if not folder.is_absolute():
        raise ConfigError(
            f'dataset = "{name}" is relative, and the apps may run in another folder: use "{LOCAL}{folder.absolute()}".'
        )
    if not folder.is_dir():
        raise ConfigError(f'dataset = "{name}": there is no such folder; give the absolute path of one.')
    return folder.resolve()


def _digits() -> dict[str, Split]:
    """Scikit-learn's digits: 1,797 grey images of 8x8 pixels with 17 grey levels, 10 classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return _complete({"train": split_of_array(pixels, bunch.target, [str(d) for d in range(10)], "train")}, DIGITS)


def _hub(name: str) -> Dataset | DatasetDict:
    hub_id = HUB_IDS.get(name, name)
    try:
        return datasets.load_dataset(hub_id)
    except _UNREADABLE as error:
        raise ConfigError(
            f'dataset = "{name}" could not be loaded from the Hugging Face hub as {hub_id} ({type(error).__name__}: '
            f"{_first_line(error)}); check the id and the network, or download it elsewhere and give its folder: "
            'dataset = "path:/absolute/folder". The data set that needs no download is dataset = "digits".'
        ) from error


def _is_split(loaded: object) -> bool:
    return isinstance(loaded, Mapping) and not isinstance(loaded, DatasetDict)


def _from_datasets(loaded: Dataset | DatasetDict, name: str) -> dict[str, Split]:
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
        raise _without_train(splits, name)
    test = by_name.get("test") if by_name.get("test") is not None else by_name.get("validation")
    return DatasetDict(train=by_name["train"]) if test is None else DatasetDict(train=by_name["train"], test=test)


def _without_train(splits: Iterable[str], name: str) -> ConfigError:
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
    except _UNREADABLE as error:
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
    usable = None not in found and len(found) <= min(MAX_TEXT_CLASSES, len(splits["train"]) // 2)
    return sorted(found) if usable else []


def _has_usable_labels(part: Dataset) -> bool:
    feature = part.features[LABEL]
    whole = isinstance(feature, Value) and feature.dtype.removeprefix("u").startswith("int")
    return (whole or isinstance(feature, ClassLabel)) and part.data.column(LABEL).null_count == 0


def _complete(splits: Mapping[str, Split], name: str) -> dict[str, Split]:
    """Return the train and test splits: the validation split for want of a test split, else a part of train."""
    if "train" not in splits:
        raise _without_train(splits, name)
    train, test = splits["train"], splits.get("test", splits.get("validation"))
    for split, part in (("train", train), ("test", test)):
        if part is not None and not len(part):
            raise ConfigError(f'dataset = "{name}" has no images in its {split} split; give some.')
    if test is not None:
        return {"train": train, "test": test}
    if len(train) < 2:
        raise ConfigError(f'dataset = "{name}" holds {len(train)} images, which cannot be split; give more.')
    rows = _split_off_test(train)
    return {split: train.select(rows[split]) for split in ("train", "test")}


def _split_off_test(train: Split) -> dict[str, list[int]]:
    """Return the rows of both splits, with the same share of every class where each has enough images."""
    labels = train.table[LABEL] if train.class_names else []
    counts = Counter(labels)
    fits = bool(labels) and min(counts.values()) >= 2 and int(TEST_FRACTION * len(train)) >= len(counts)
    table = train.table.select_columns([LABEL] if fits else train.table.column_names[:1])
    table = table.add_column("_row", list(range(len(train))))
    parts = table.train_test_split(TEST_FRACTION, seed=SPLIT_SEED, stratify_by_column=LABEL if fits else None)
    return {split: list(parts[split]["_row"]) for split in ("train", "test")}


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
