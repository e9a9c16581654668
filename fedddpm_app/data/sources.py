"""Where images come from: the embedded digits, a local folder, or the Hugging Face hub.

Every source gives a ``DatasetDict`` with ``train`` and ``test`` splits and two columns: ``image`` (PIL)
and, where the source has labels, ``label`` (``ClassLabel``).
"""

import functools
from pathlib import Path

import datasets
import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image

from fedddpm_app.config import ConfigError

TEST_FRACTION = 0.2
SPLIT_SEED = 0  # the split is a property of the data set, equal for all runs and seeds
_LOCAL = "path:"
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")


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
        loaded = _local(Path(name.removeprefix(_LOCAL)).expanduser())
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
    if not folder.is_dir():
        raise ConfigError(f'dataset = "path:{folder}": there is no such folder; give the absolute path of one.')
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return datasets.load_from_disk(str(folder))
    splits = {split: sorted(map(str, folder.glob(f"**/{split}*.parquet"))) for split in ("train", "test")}
    if splits["train"]:
        return datasets.load_dataset("parquet", data_files={k: v for k, v in splits.items() if v})
    try:
        return datasets.load_dataset("imagefolder", data_dir=str(folder))
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError) as error:
        raise ConfigError(
            f'dataset = "path:{folder}" holds no images that can be read ({error}); give a folder of images '
            "(one sub-folder per class), train-*.parquet files, or a save_to_disk folder."
        ) from error


def _hub(name: str) -> Dataset | DatasetDict:
    try:
        return datasets.load_dataset(name)
    except (datasets.exceptions.DatasetsError, ConnectionError, OSError, ValueError) as error:
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
    splits = DatasetDict({k: v.select_columns(list(kept)) for k, v in splits.items() if k in ("train", "test")})
    splits = splits.rename_columns({old: new for old, new in kept.items() if old != new})
    if "test" not in splits:
        stratify = "label" if label and isinstance(splits["train"].features["label"], ClassLabel) else None
        splits = splits["train"].train_test_split(TEST_FRACTION, seed=SPLIT_SEED, stratify_by_column=stratify)
    return splits
