"""Where images come from: the embedded digits, a local folder, or the Hugging Face hub.

Every source gives a ``DatasetDict`` with ``train`` and ``test`` splits and two columns: ``image`` (PIL)
and, where the source has labels, ``label`` (``ClassLabel`` or whole numbers).
"""

import functools
import glob
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from fedddpm_app.config import ConfigError
from fedddpm_app.progress import logger

TEST_FRACTION = 0.2
SPLIT_SEED = 0  # the split is a property of the data set, equal for all runs and seeds
_LOCAL = "path:"
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_UNREADABLE = (datasets.exceptions.DatasetsError, pyarrow.ArrowException, OSError, ValueError, LookupError, TypeError)


@functools.cache
def load_source(name: str) -> DatasetDict:
    """Load a data set by the value of the ``dataset`` key.

    Parameters
    ----------
    name : str
        ``digits``; ``path:/abs/folder`` (a ``save_to_disk`` folder, parquet files, or images in one
        folder per class); or a Hugging Face hub id such as ``ylecun/mnist``.

    Raises
    ------
    ConfigError
        When the source cannot be read, with how to supply it.
    """
    if name == "digits":
        loaded = _digits()
    elif name.startswith(_LOCAL):
        folder = Path(name.removeprefix(_LOCAL)).expanduser()
        if not folder.is_dir():
            raise ConfigError(f'dataset = "{name}": there is no such folder; give the absolute path of one.')
        try:
            loaded = _local(folder)
        except _UNREADABLE as error:
            raise ConfigError(
                f'dataset = "{name}" holds no images that can be read ({_first_line(error)}); give a folder of images '
                "(one sub-folder per class), train-*.parquet files, or a save_to_disk folder."
            ) from error
    else:
        loaded = _hub(name)
    return _standardise(loaded, name)


def _digits() -> Dataset:
    """Scikit-learn's digits: 1,797 grey images of 8x8 pixels with 17 grey levels, 10 classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(d) for d in range(10)])})
    return Dataset.from_dict({"image": list(pixels), "label": bunch.target.tolist()}, features=features)


def _local(folder: Path) -> Dataset | DatasetDict:
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return datasets.load_from_disk(str(folder))
    escaped = Path(glob.escape(str(folder)))
    splits = {split: sorted(map(str, folder.glob(f"**/{split}*.parquet"))) for split in ("train", "test")}
    if splits["train"]:
        files = {split: [glob.escape(path) for path in paths] for split, paths in splits.items() if paths}
        return datasets.load_dataset("parquet", data_files=files)
    return datasets.load_dataset("imagefolder", data_dir=str(escaped))


def _hub(name: str) -> Dataset | DatasetDict:
    try:
        return datasets.load_dataset(name)
    except _UNREADABLE as error:
        raise ConfigError(
            f'dataset = "{name}" could not be loaded from the Hugging Face hub ({type(error).__name__}); check '
            "the id and the network, or download it elsewhere and give its folder: dataset = "
            '"path:/absolute/folder". The data set that needs no download is dataset = "digits".'
        ) from error


def _standardise(loaded: Dataset | DatasetDict, name: str) -> DatasetDict:
    """Bring columns to ``image`` and ``label``, and split off a test set where there is none."""
    splits = loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
    if "train" not in splits:
        raise ConfigError(f'dataset = "{name}" has no train split, only {", ".join(splits)}.')
    columns = splits["train"].column_names
    image = next((c for c in _IMAGE_COLUMNS if c in columns), None)
    label = next((c for c in _LABEL_COLUMNS if c in columns), None)
    if image is None:
        raise ConfigError(f'dataset = "{name}" has no image column, only {", ".join(columns)}.')
    kept = {image: "image"} | ({label: "label"} if label else {})
    splits = DatasetDict({split: _rename(splits[split], kept, name) for split in ("train", "test") if split in splits})
    if not all(_has_usable_labels(part) for part in splits.values()):
        logger.warning('dataset = "%s": its column "%s" is left out: labels are whole numbers from 0.', name, label)
        splits = splits.remove_columns("label")
    if "test" in splits:
        return splits
    if len(splits["train"]) < 2:
        raise ConfigError(f'dataset = "{name}" holds {len(splits["train"])} images, which cannot be split; give more.')
    return _split_off_test(splits["train"])


def _rename(part: Dataset, kept: dict[str, str], name: str) -> Dataset:
    """Return the columns ``kept`` of a split under their standard names, images decoding to PIL."""
    missing = [column for column in kept if column not in part.column_names]
    if missing:
        raise ConfigError(f'dataset = "{name}": its test split lacks the column "{missing[0]}" of its train split.')
    part = part.select_columns(list(kept)).rename_columns({old: new for old, new in kept.items() if old != new})
    if isinstance(part.features["image"], Image):
        return part
    try:
        return part.cast_column("image", Image())
    except _UNREADABLE as error:
        raise ConfigError(
            f'dataset = "{name}": its column "{next(iter(kept))}" holds {part.features["image"]}, not images; store it '
            "with datasets' Image feature."
        ) from error


def _has_usable_labels(part: Dataset) -> bool:
    """Return whether labels, where there are any, are classes or whole numbers, none missing."""
    if "label" not in part.column_names:
        return True
    feature = part.features["label"]
    whole = isinstance(feature, Value) and feature.dtype.removeprefix("u").startswith("int")
    return (whole or isinstance(feature, ClassLabel)) and part.data.column("label").null_count == 0


def _split_off_test(train: Dataset) -> DatasetDict:
    """Split off a test set, with the same share of every class where each has enough images."""
    classes = isinstance(train.features.get("label"), ClassLabel)
    fits = classes and min(Counter(train["label"]).values()) >= 2
    return train.train_test_split(TEST_FRACTION, seed=SPLIT_SEED, stratify_by_column="label" if fits else None)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
