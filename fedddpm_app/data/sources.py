"""Sources of images: the embedded digits, a local folder, or the Hugging Face hub.

Every source gives a ``train`` and a ``test`` split.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, DatasetDict
from huggingface_hub.constants import HF_HUB_CACHE

from fedddpm_app.config import ConfigError, first_line
from fedddpm_app.data.columns import UNREADABLE, splits_of, without_train
from fedddpm_app.data.files import is_folder
from fedddpm_app.data.folders import load_folder, stat_digest
from fedddpm_app.data.splits import LABEL, Split, split_of_array

DIGITS = "digits"
LOCAL = "path:"
HUB_IDS = {
    "mnist": "ylecun/mnist",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
TEST_FRACTION = 0.2
SPLIT_SEED = 0  # the split belongs to the data set: it is equal for all runs and seeds


@functools.lru_cache(maxsize=4)
def load_source(name: str) -> dict[str, Split]:
    """Load a data set by the value of the ``dataset`` key.

    Parameters
    ----------
    name : str
        ``digits``; ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100`` or any id of the Hugging Face hub; or
        ``path:/abs/folder``, a folder of pictures (with one sub-folder per class, or without sub-folders), of
        parquet or arrow files, of IDX files, or a ``save_to_disk`` folder.

    Returns
    -------
    dict of str to Split
        ``train`` and ``test``. Without a test split the validation split takes its place; without both, a fifth of
        the training split becomes the test split.

    Raises
    ------
    ConfigError
        When the source cannot be read; the message says how to supply it.
    """
    if name == DIGITS:
        return _digits()
    if name.startswith(("/", "./", "../", "~")):
        raise ConfigError(f'dataset = "{name}" looks like a folder: write "{LOCAL}{Path(name).absolute()}".')
    return _complete(load_local(name) if name.startswith(LOCAL) else _of_hub(name), name)


def load_local(name: str, class_names: Sequence[str] | None = None) -> dict[str, Split]:
    """Return the splits of a ``path:`` data set; raise ``ConfigError`` if it cannot be read.

    ``class_names`` are those that a site's images may have; None if the data set is not a site.
    """
    folder = local_folder(name)
    try:
        loaded = load_folder(folder, class_names)
        if isinstance(loaded, Dataset | DatasetDict):
            return splits_of(loaded, name, [folder], class_names or ())
        return loaded
    except ConfigError:
        raise
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.filename and not Path(error.filename).is_relative_to(folder):
            raise ConfigError(
                f'dataset = "{name}": {error.filename} cannot be used ({error.strerror}); it is of the Hugging Face '
                "cache: set HF_HOME to a writable folder."
            ) from error
        raise ConfigError(
            f'dataset = "{name}" holds no images that can be read ({first_line(error)}); give a folder of images '
            "(with one sub-folder per class, or without sub-folders), a folder of parquet, arrow or IDX files, or a "
            "save_to_disk folder."
        ) from error


def fingerprint(name: str) -> str:
    """Return a text that changes when a source changes; no image is decoded."""
    if name.startswith(LOCAL):
        return stat_digest(local_folder(name))
    if name == DIGITS:
        return DIGITS
    splits = load_source(name)
    return " ".join(f"{split}={len(splits[split])}:{splits[split].fingerprint}" for split in sorted(splits))


def local_folder(name: str) -> Path:
    """Return the folder of a ``path:`` data set; raise ``ConfigError`` if there is none."""
    try:
        folder = Path(name.removeprefix(LOCAL)).expanduser()
    except RuntimeError as error:
        raise ConfigError(f'dataset = "{name}" cannot be used: {error} Give an absolute path.') from error
    if not folder.is_absolute():
        raise ConfigError(
            f'dataset = "{name}" is relative, and the apps may run in another folder: use "{LOCAL}{folder.absolute()}".'
        )
    if not is_folder(folder):
        raise ConfigError(f'dataset = "{name}": there is no such folder; give the absolute path of a folder.')
    return folder.resolve()


def _digits() -> dict[str, Split]:
    """Return scikit-learn's digits: 1,797 grey images of 8x8 pixels with 17 grey levels, 10 classes."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    return _complete({"train": split_of_array(pixels, bunch.target, [str(d) for d in range(10)], "train")}, DIGITS)


def _of_hub(name: str) -> dict[str, Split]:
    """Return the splits of a data set of the hub, whose pictures may be files in the caches."""
    caches = (datasets.config.HF_DATASETS_CACHE, datasets.config.DOWNLOADED_DATASETS_PATH, HF_HUB_CACHE)
    return splits_of(_hub(name), name, [Path(cache) for cache in caches])


def _hub(name: str) -> Dataset | DatasetDict:
    hub_id = HUB_IDS.get(name, name)
    try:
        return datasets.load_dataset(hub_id)
    except UNREADABLE as error:
        raise ConfigError(
            f'dataset = "{name}" could not be loaded from the Hugging Face hub as {hub_id} ({type(error).__name__}: '
            f"{first_line(error)}); check the id and the network, or download the data set elsewhere and give its "
            'folder: dataset = "path:/absolute/folder". dataset = "digits" needs no download.'
        ) from error


def _complete(splits: Mapping[str, Split], name: str) -> dict[str, Split]:
    """Return the train and test splits; a missing test split is the validation split, or else a part of train."""
    if "train" not in splits:
        raise without_train(splits, name)
    train, test = splits["train"], splits.get("test", splits.get("validation"))
    for split, part in (("train", train), ("test", test)):
        if part is not None and not len(part):
            raise ConfigError(f'dataset = "{name}" has no images in its {split} split; add at least one.')
    if test is not None:
        return {"train": train, "test": test}
    if len(train) < 2:
        raise ConfigError(f'dataset = "{name}" holds {len(train)} images, which cannot be split; add more.')
    rows = _split_off_test(train)
    return {split: train.select(rows[split]) for split in ("train", "test")}


def _split_off_test(train: Split) -> dict[str, list[int]]:
    """Return the rows of both splits; classes keep their shares if every class has enough images."""
    labels = train.table[LABEL] if train.class_names else []
    counts = Counter(labels)
    fits = bool(labels) and min(counts.values()) >= 2 and int(TEST_FRACTION * len(train)) >= len(counts)
    table = train.table.select_columns([LABEL] if fits else train.table.column_names[:1])
    table = table.add_column("_row", list(range(len(train))))
    parts = table.train_test_split(TEST_FRACTION, seed=SPLIT_SEED, stratify_by_column=LABEL if fits else None)
    return {split: list(parts[split]["_row"]) for split in ("train", "test")}
