"""What a local folder holds: IDX files, a ``save_to_disk`` folder, tables, or pictures."""

import glob
import hashlib
import os
import re
from pathlib import Path

import datasets
import numpy as np
from datasets import Dataset, DatasetDict

from fedddpm_app.data.idx import find_idx, read_idx
from fedddpm_app.data.splits import Split, split_of_array

_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_SPLIT = re.compile(r"(train|test|val|dev|eval)(ing|id|idation|uation)?([-_.].*)?", re.IGNORECASE)
_SPLIT_OF = {"train": "train", "test": "test", "val": "validation", "dev": "validation", "eval": "validation"}


def load_folder(folder: Path) -> Dataset | DatasetDict | dict[str, Split]:
    """Load what a folder holds; tables and pictures as data sets, whose columns are the user's."""
    idx = find_idx(folder)
    if idx:
        return {split: _idx_split(images, labels, split) for split, (images, labels) in idx.items()}
    if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
        return datasets.load_from_disk(str(folder))
    for suffix, builder in _TABLES.items():
        files = _by_split(sorted(folder.rglob(f"*{suffix}")), folder)
        if files:
            return datasets.load_dataset(builder, data_files=files)
    return datasets.load_dataset("imagefolder", data_dir=glob.escape(str(folder)))


def stat_digest(folder: Path) -> str:
    """Return a SHA-256 of the names, sizes and modification times of all files under a folder."""
    digest = hashlib.sha256()
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            path = Path(parent, name)
            stat = path.stat() if path.exists() else path.lstat()  # a link may lead nowhere
            digest.update(f"{path.relative_to(folder)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _by_split(files: list[Path], folder: Path) -> dict[str, list[str]]:
    """Sort table files into splits by what their name, or a folder of theirs, starts with; without a hint: train."""
    found: dict[str, list[str]] = {}
    for path in files:
        matches = (_SPLIT.fullmatch(part) for part in reversed(path.relative_to(folder).parts))
        split = next((_SPLIT_OF[match[1].lower()] for match in matches if match), "train")
        found.setdefault(split, []).append(glob.escape(str(path)))
    return found


def _idx_split(images: Path, labels: Path | None, split: str) -> Split:
    pixels = read_idx(images)
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 3 and not (pixels.ndim == 4 and pixels.shape[3] == 3):
        raise ValueError(f"{images.name} holds arrays of shape {pixels.shape}, not grey or RGB images")
    if labels is None:
        return split_of_array(pixels, None, [], split)
    classes = read_idx(labels).astype(np.int64)
    if classes.shape != (len(pixels),):
        raise ValueError(f"{labels.name} holds {classes.size} labels for {len(pixels)} images")
    return split_of_array(pixels, classes, [str(k) for k in range(int(classes.max(initial=0)) + 1)], split)
