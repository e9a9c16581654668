"""Load a local folder: IDX files, a ``save_to_disk`` folder, tables, or pictures."""

import contextlib
import glob
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, DatasetDict

from fedddpm_app.config import ConfigError
from fedddpm_app.data.files import find_files
from fedddpm_app.data.idx import find_idx, read_idx
from fedddpm_app.data.metadata import TABLE_NAMES
from fedddpm_app.data.names import printable
from fedddpm_app.data.pictures import picture_splits
from fedddpm_app.data.splits import Split, split_named, split_of_array
from fedddpm_app.data.unpacked import check_parquet
from fedddpm_app.disk.arrow import check_arrow, check_saved

_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_CHECKS: dict[str, Callable[[Path], None]] = {".parquet": check_parquet, ".arrow": check_arrow}


def load_folder(folder: Path, class_names: Sequence[str] | None = None) -> Dataset | DatasetDict | dict[str, Split]:
    """Load the images of a folder; ``class_names`` are those of a site, see ``picture_splits``.

    Tables and ``save_to_disk`` folders are returned as data sets with the user's columns, IDX files and pictures
    as splits.
    """
    idx = find_idx(folder)
    if idx:
        return {split: _idx_split(images, labels, split) for split, (images, labels) in idx.items()}
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        check_saved(folder)
        return datasets.load_from_disk(str(folder))
    for suffix, builder in _TABLES.items():
        found = [path for path in find_files(folder) if path.suffix.lower() == suffix]
        found = [path for path in found if path.name.lower() not in TABLE_NAMES]
        files = _by_split(found, folder)
        for path in found:
            _CHECKS[suffix](path)
        if files:
            return datasets.load_dataset(builder, data_files=files)
    return picture_splits(folder, class_names)


def stat_digest(folder: Path) -> str:
    """Return a SHA-256 of the names, sizes and modification times of all files under a folder."""
    digest = hashlib.sha256()
    for path in find_files(folder):
        stat = _stat(path)
        digest.update(os.fsencode(path.relative_to(folder)) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _stat(path: Path) -> os.stat_result:
    try:
        with contextlib.suppress(OSError):  # a link may lead nowhere
            return path.stat()
        return path.lstat()
    except OSError as error:
        raise ConfigError(
            f"{printable(path)} cannot be read ({error.strerror}): change the permissions of its folder."
        ) from error


def _by_split(files: list[Path], folder: Path) -> dict[str, list[str]]:
    """Assign table files to splits by their file or folder names; a file without such a name belongs to train."""
    found: dict[str, list[Path]] = {}
    for path in files:
        named = (split_named(part) for part in reversed(path.relative_to(folder).parts))
        found.setdefault(next((split for split in named if split), "train"), []).append(path)
    for split, paths in found.items():
        parents = sorted({str(path.parent.relative_to(folder)) for path in paths})
        if len(parents) > 1:
            raise ConfigError(
                f"{printable(folder)} holds tables of the {split} split in several folders, {printable(parents[0])} "
                f"and {printable(parents[1])}: give the folder of one data set."
            )
    return {split: [glob.escape(str(path)) for path in paths] for split, paths in found.items()}


def _idx_split(images: Path, labels: Path | None, split: str) -> Split:
    pixels = read_idx(images)
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 3 and not (pixels.ndim == 4 and pixels.shape[3] == 3):
        raise ValueError(f"{printable(images.name)} holds arrays of shape {pixels.shape}, not grey or RGB images")
    if labels is None:
        return split_of_array(pixels, None, [], split)
    classes = read_idx(labels).astype(np.int64)
    if classes.shape != (len(pixels),):
        raise ValueError(f"{printable(labels.name)} holds {classes.size} labels for {len(pixels)} images")
    return split_of_array(pixels, classes, [str(k) for k in range(int(classes.max(initial=0)) + 1)], split)
